//! What a simulator needs of a shard: to drive it from outside, and to look into it.

use std::{cell::Ref, task::Waker};

use bytes::Bytes;

use super::{Shard, core::Next};
use crate::{protocol::Protocol, topology::NodeIndex};

/// How full the bounded places of a shard are.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Fill {
    /// Bytes in the queue of the fullest link.
    pub(crate) link_queue_bytes: usize,
    /// Bytes in the queues of all clients.
    pub(crate) client_queue_bytes: usize,
    /// Bytes of records that wait for the disk.
    pub(crate) log_pending_bytes: usize,
}

impl<P: Protocol> Shard<P> {
    /// Whether anything has come in since the last turn.
    pub(crate) fn is_woken(&self) -> bool {
        self.wake.take()
    }

    /// One turn of the loop.
    pub(crate) fn turn(&self) -> Next {
        self.core.borrow_mut().turn()
    }

    /// Has readers go on that the last turn had no time for.
    pub(crate) fn feed(&self) {
        self.core.borrow_mut().feed();
    }

    /// How the other shards of the node wake this one.
    pub(crate) fn set_mail_waker(&self, waker: Waker) {
        self.node.mailboxes.set_waker(self.shard, Some(waker));
    }

    /// Goes to sleep after a turn; false if mail has come meanwhile, so that another turn is due.
    pub(crate) fn sleep(&self) -> bool {
        self.node.cluster.shards == 1 || self.node.mailboxes.sleep(self.shard)
    }

    /// The protocol, to be looked at.
    pub(crate) fn protocol(&self) -> Ref<'_, P> {
        Ref::map(self.core.borrow(), |core| core.protocol())
    }

    /// From now on frames for peers are kept for [`Self::take_tap`], which has to be called again and again.
    pub(crate) fn open_tap(&self) {
        self.core.borrow_mut().open_tap();
    }

    /// Takes every frame that was queued for a peer since the last call: whole, and due to be sent.
    pub(crate) fn take_tap(&self) -> Vec<(NodeIndex, Bytes)> {
        self.core.borrow_mut().take_tap()
    }

    /// How full it is.
    pub(crate) fn fill(&self) -> Fill {
        self.core.borrow_mut().fill()
    }
}
