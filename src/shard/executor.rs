//! Starting a shard, running it, and stopping it.

use std::{
    future::poll_fn,
    io,
    rc::Rc,
    sync::{Arc, mpsc},
    task::{Context, Poll},
    time::Duration,
};

use glommio::{Task, timer::Timer};

use super::{
    Host, Listener, Log, Node, Shard, ShardContext,
    core::Next,
    log::Unlogged,
    poller::{Acceptor, Poller},
    recover::{Recovered, recover},
    sessions, web,
};
use crate::{
    failure::Failure,
    protocol::{Micros, Protocol},
    topology::{NodeIndex, ShardId},
    wal::{EndKeeper, Wal},
};

/// How long the readers of a stopping shard have to find the end of their streams.
const CLOSE_PATIENCE: Duration = Duration::from_millis(200);

/// A shard that runs in a host's thread.
#[derive(Debug)]
pub(crate) struct Executor {
    started: mpsc::Receiver<Result<(), Failure>>,
    ended: mpsc::Receiver<()>,
    shard: ShardId,
    /// Keeps the thread.
    _host: Arc<Host>,
}

impl Executor {
    /// Waits until the shard listens.
    ///
    /// # Errors
    /// Why it does not.
    pub(crate) fn wait_started(self) -> Result<Self, Failure> {
        match self.started.recv() {
            Ok(Ok(())) => Ok(self),
            Ok(Err(failure)) => Err(failure),
            Err(mpsc::RecvError) => Err(Failure::Bug(format!("shard {} ended before it began", self.shard.0))),
        }
    }

    /// Waits until the shard has stopped. Why, its node knows.
    pub(crate) fn join(self) {
        // The other end is never used: it goes when the shard does.
        let _ = self.ended.recv();
    }
}

/// What a shard listens on.
#[derive(Debug)]
pub(crate) struct Doors {
    /// For peers and native clients.
    pub(crate) native: Listener,
    /// For HTTP, in the one shard that accepts for the whole node.
    pub(crate) http: Option<Listener>,
}

impl Doors {
    fn listen(self, poller: &Rc<Poller>) -> Result<(Acceptor, Option<Acceptor>), Failure> {
        let listen = |listener: Listener| {
            let failed = |error: io::Error| Failure::Environment(format!("a listener cannot be watched: {error}"));
            poller.acceptor(listener.listen()?).map_err(failed)
        };
        Ok((listen(self.native)?, self.http.map(listen).transpose()?))
    }
}

/// Starts a shard in a host's thread. `make` runs there. What goes wrong is told by [`Executor::wait_started`].
pub(crate) fn spawn<P, F>(node: Arc<Node>, shard: ShardId, host: Arc<Host>, doors: Doors, make: F) -> Executor
where
    P: Protocol + 'static,
    F: FnOnce(ShardContext) -> P + Send + 'static,
{
    let (tell, started) = mpsc::channel();
    let (running, ended) = mpsc::channel();
    host.run(move |poller| async move {
        run(node, shard, poller, doors, make, tell).await;
        drop(running);
    });
    Executor { started, ended, shard, _host: host }
}

/// Stops the whole node if this shard goes down with a bug.
struct StopNodeOnPanic(Arc<Node>);

impl Drop for StopNodeOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.fail(Failure::Bug("a shard has panicked".to_owned()));
        }
    }
}

async fn run<P, F>(
    node: Arc<Node>,
    shard: ShardId,
    poller: Rc<Poller>,
    doors: Doors,
    make: F,
    tell: mpsc::Sender<Result<(), Failure>>,
) where
    P: Protocol + 'static,
    F: FnOnce(ShardContext) -> P + Send + 'static,
{
    let _guard = StopNodeOnPanic(Arc::clone(&node));
    let mut protocol = make(context(&node, shard));
    let kept = match recover(&node, shard, &mut protocol).await {
        Ok(Recovered::Log(wal, keeper)) => Some((wal, keeper)),
        Ok(Recovered::Nothing) => None,
        Ok(Recovered::Stopped) => return drop(tell.send(Ok(()))),
        Err(failure) => return drop(tell.send(Err(failure))),
    };
    let listening = doors.listen(&poller);
    let (acceptor, http) = match listening {
        Ok(listening) => listening,
        Err(failure) => {
            close(&node, kept).await;
            return drop(tell.send(Err(failure)));
        }
    };
    let log: Box<dyn Log> = match &kept {
        Some((wal, _)) => Box::new(wal.clone()),
        None => Box::<Unlogged>::default(),
    };
    let this = Shard::new(Arc::clone(&node), shard, protocol, log, Some(Rc::clone(&poller)));
    this.be_asked();
    let mut tasks = vec![glommio::spawn_local(sessions::accept(Rc::clone(&this), acceptor))];
    if let Some((wal, keeper)) = &kept {
        tasks.push(glommio::spawn_local(note_end(Arc::clone(&node), wal.clone(), Rc::clone(keeper))));
        wal.set_bell(poller.waker());
        let shard = Rc::downgrade(&this);
        wal.set_wake(move || {
            if let Some(shard) = shard.upgrade() {
                shard.wake.notify();
            }
        });
    }
    for peer in (0..node.index.0).map(NodeIndex) {
        tasks.push(glommio::spawn_local(sessions::dial(Rc::clone(&this), peer)));
    }
    if node.member().http.is_some() {
        node.doors[usize::from(shard.0)].open(poller.waker());
        tasks.push(glommio::spawn_local(web::serve_arrivals(Rc::clone(&this))));
        tasks.push(glommio::spawn_local(web::sweep(Rc::clone(&this))));
        tasks.push(glommio::spawn_local(web::answer_questions(Rc::clone(&this))));
    }
    if let Some(acceptor) = http {
        tasks.push(glommio::spawn_local(web::accept(Rc::clone(&this), acceptor)));
    }
    let _ = tell.send(Ok(()));
    if node.cluster.shards > 1 {
        node.mailboxes.set_waker(shard, Some(poller.waker()));
    }
    Turns { shard: &this }.run().await;
    stop(&this, tasks).await;
    close(&node, kept).await;
}

/// Follows the log of a shard, to know after a start how far it must go.
async fn note_end(node: Arc<Node>, wal: Wal, keeper: Rc<EndKeeper>) {
    let failure = keeper.follow(&wal).await;
    node.fail(failure);
}

/// Nothing more will be appended: waits until everything is on stable storage, and so is where it ends.
async fn close(node: &Node, kept: Option<(Wal, Rc<EndKeeper>)>) {
    let Some((wal, keeper)) = kept else { return };
    let log = wal.clone();
    if !wal.close().await {
        return;
    }
    match keeper.note(log.end(), true).await {
        Ok(()) => node.log_closed(),
        Err(failure) => node.fail(failure),
    }
}

fn context(node: &Node, shard: ShardId) -> ShardContext {
    ShardContext {
        cluster: Arc::clone(&node.cluster),
        tuning: Arc::clone(&node.tuning),
        node: node.index,
        shard,
        incarnation: node.incarnation,
        boot: u64::from(node.boot),
        now: node.now(),
        seed: node.incarnation.rotate_left(17) ^ (u64::from(shard.0) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15),
    }
}

/// Lets every connection go, so that nothing of the shard outlives it.
async fn stop<P: Protocol>(shard: &Rc<Shard<P>>, tasks: Vec<Task<()>>) {
    shard.node.mailboxes.set_waker(shard.shard, None);
    shard.core.borrow_mut().close_all();
    shard.node.doors[usize::from(shard.shard.0)].close();
    shard.web.stop();
    shard.node.questions[usize::from(shard.shard.0)].close();
    for task in tasks {
        task.cancel().await;
    }
    let started = std::time::Instant::now();
    loop {
        // At least once: a wake-up by another shard may be under way, and is taken in by a turn of the reactor.
        Timer::new(Duration::from_millis(1)).await;
        if shard.serving.get() == 0 || started.elapsed() >= CLOSE_PATIENCE {
            break;
        }
        if started.elapsed() >= CLOSE_PATIENCE / 2 {
            shard.web.close_all();
        }
    }
    tracing::debug!(node = %shard.id(), shard = shard.shard.0, "stopped");
}

/// The turn task: runs a turn whenever something has come in, or the executor's loop has found that one is due.
struct Turns<'a, P> {
    shard: &'a Shard<P>,
}

impl<P: Protocol> Turns<'_, P> {
    async fn run(&self) {
        poll_fn(|context| self.poll(context)).await;
    }

    fn poll(&self, context: &mut Context<'_>) -> Poll<()> {
        loop {
            self.shard.wake.take();
            let turn = self.shard.core.borrow_mut().turn();
            let Next::At(next) = turn else {
                self.shard.due_at.set(Micros(u64::MAX));
                return Poll::Ready(());
            };
            self.shard.due_at.set(next);
            if self.shard.node.cluster.shards > 1 {
                // Should mail have come meanwhile, the executor's loop finds that out: readers and others have a turn first.
                self.shard.node.mailboxes.sleep(self.shard.shard);
            }
            if self.shard.wake.poll(context).is_pending() {
                return Poll::Pending;
            }
        }
    }
}
