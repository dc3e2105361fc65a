//! The client's sockets: opening, writing, receiving, and the timers of connections.

use std::{mem, time::Duration};

use mio::{Interest, Token, event::Event};

use super::{
    Client, ClientError, Completion,
    connection::{self, Stage},
    handshake, micros_of,
    requests::{Link, Place},
};
use crate::{
    api::native::{self, ClientWelcome},
    protocol::Micros,
    wire::{FrameRef, Kind},
};

/// A silent connection is given up after this many times [`super::Options::attempt_timeout`].
const SILENT_ATTEMPTS_MAX: u64 = 5;
/// One wait of the operating system; longer ones are made of several.
const WAIT_MAX: Duration = Duration::from_secs(60);

impl Client {
    pub(super) fn attempt_us(&self) -> u64 {
        micros_of(self.options.attempt_timeout)
    }

    /// Begins to connect, if the connection is down. False if that failed at once; it is down then.
    pub(super) fn open(&mut self, index: usize) -> bool {
        let (now, patience) = (self.now, self.attempt_us());
        let connection = &mut self.connections[index];
        if !matches!(connection.stage, Stage::Down { .. }) {
            return true;
        }
        let mut opened = connection.open(now, patience);
        if let (Ok(()), Some(stream)) = (&opened, connection.stream()) {
            opened = self.poll.registry().register(stream, Token(index), Interest::READABLE | Interest::WRITABLE);
        }
        match opened {
            Ok(()) => self.connection_due(now.plus(patience)),
            Err(error) => self.fail_connection(index, &error),
        }
        !matches!(self.connections[index].stage, Stage::Down { .. })
    }

    /// Ends a connection's life; its requests go elsewhere.
    pub(super) fn fail_connection(&mut self, index: usize, reason: &dyn std::fmt::Display) {
        let jitter = self.jitter();
        let connection = &mut self.connections[index];
        tracing::debug!(address = connection.address, shard = connection.shard, %reason, "connection failed");
        let link = Link { connection: index, epoch: connection.epoch };
        let written = connection.become_down(self.now, jitter);
        connection.queued.clear();
        if let Stage::Down { at } = connection.stage {
            self.connection_due(at);
        }
        self.counters.failed += 1;
        for id in self.requests.on_link(link) {
            self.link_lost(id, written);
        }
    }

    fn connection_due(&mut self, at: Micros) {
        self.connections_due = self.connections_due.min(at);
    }

    /// Does what time has come for: connections first, so that requests find them as they are.
    pub(super) fn run_timers(&mut self) {
        if self.connections_due <= self.now {
            self.run_connection_timers();
        }
        let first_us = self.first_attempt_us();
        while let Some(id) = self.requests.pop_due(self.now, first_us) {
            self.on_request_due(id);
        }
    }

    /// Looks at every connection; seldom, as most of the time none is down, coming up or silent.
    fn run_connection_timers(&mut self) {
        self.connections_due = Micros(u64::MAX);
        let silent_us = self.attempt_us().saturating_mul(SILENT_ATTEMPTS_MAX);
        for index in 0..self.connections.len() {
            let connection = &self.connections[index];
            let due = match (&connection.stage, connection.silent_since) {
                (Stage::Down { .. }, _) if connection.failures == 0 => continue,
                (Stage::Down { at }, _) => *at,
                (Stage::Connecting(_) | Stage::Greeting(_), _) => connection.ready_by,
                (Stage::Ready(_), Some(since)) => since.plus(silent_us),
                (Stage::Ready(_), None) => continue,
            };
            if due > self.now {
                self.connection_due(due);
            } else if matches!(connection.stage, Stage::Down { .. }) {
                self.open(index);
            } else {
                self.fail_connection(index, &"it did not answer in time");
            }
        }
    }

    /// A connection has been silent for an attempt's time while a request waited on it.
    pub(super) fn become_silent(&mut self, link: Link) {
        let silent_us = self.attempt_us().saturating_mul(SILENT_ATTEMPTS_MAX);
        let connection = &mut self.connections[link.connection];
        if connection.silent_since.is_some() {
            return;
        }
        connection.silent_since = Some(self.now);
        self.connection_due(self.now.plus(silent_us));
        for id in self.requests.on_link(link) {
            self.leave_unanswered(id);
        }
    }

    /// Writes on every connection that has something to write, but lets requests wait for company where an answer is on
    /// its way ([`super::Options::linger`]): one system call carries them all then.
    pub(super) fn write_dirty(&mut self) {
        let linger_us = micros_of(self.options.linger);
        self.held_until = Micros(u64::MAX);
        let mut place = 0;
        while let Some(&index) = self.dirty.get(place) {
            let connection = &mut self.connections[index];
            if let Some(until) = connection.holds_until(linger_us).filter(|until| *until > self.now) {
                self.held_until = self.held_until.min(until);
                place += 1;
                continue;
            }
            self.dirty.swap_remove(place);
            connection.dirty = false;
            match connection.write() {
                Ok(written) => {
                    self.counters.frames_sent += written.frames as u64;
                    self.counters.bytes_sent += written.bytes as u64;
                    self.counters.writes += written.calls as u64;
                }
                Err(error) => self.fail_connection(index, &error),
            }
        }
    }

    pub(super) fn mark_dirty(&mut self, index: usize) {
        if !mem::replace(&mut self.connections[index].dirty, true) {
            self.connections[index].dirty_since = self.now;
            self.dirty.push(index);
        }
    }

    /// Waits for sockets until `until` or the next timer, and takes what came.
    pub(super) fn wait_and_receive(
        &mut self,
        until: Micros,
        on: &mut dyn FnMut(Completion<'_>),
    ) -> Result<(), ClientError> {
        let first_us = self.first_attempt_us();
        let timer = self.requests.next_due(first_us).unwrap_or(until).min(self.connections_due).min(self.held_until);
        let wait = Duration::from_micros(until.min(timer).since(self.now)).min(WAIT_MAX);
        match self.poll.poll(&mut self.events, Some(wait)) {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            other => other?,
        }
        self.update_clock();
        let events = mem::replace(&mut self.events, mio::Events::with_capacity(0));
        for event in &events {
            self.on_event(event, on);
        }
        self.events = events;
        Ok(())
    }

    fn on_event(&mut self, event: &Event, on: &mut dyn FnMut(Completion<'_>)) {
        let index = event.token().0;
        let closing = event.is_read_closed() || event.is_write_closed() || event.is_error();
        match self.connections[index].stage {
            Stage::Down { .. } => {}
            Stage::Connecting(_) => self.greet(index),
            Stage::Greeting(_) | Stage::Ready(_) => {
                if event.is_readable() || closing {
                    self.receive(index, closing, on);
                }
                if event.is_writable() && self.connections[index].is_ready() {
                    self.mark_dirty(index);
                }
            }
        }
    }

    fn greet(&mut self, index: usize) {
        let hello = handshake::hello(Some(self.welcome.cluster.clone()), self.client_id, self.options.zone);
        let connection = &mut self.connections[index];
        let frame = handshake::hello_frame(&hello, connection.shard);
        if let Err(error) = connection.greet(&frame) {
            self.fail_connection(index, &error);
        }
    }

    /// Reads until the socket has no more, handing out answers as they come.
    fn receive(&mut self, index: usize, closing: bool, on: &mut dyn FnMut(Completion<'_>)) {
        loop {
            let connection = &mut self.connections[index];
            let received = match connection.read() {
                Ok(received) => received,
                Err(error) => return self.fail_connection(index, &error),
            };
            self.counters.reads += 1;
            self.counters.bytes_received += received.bytes as u64;
            if received.closed {
                return self.fail_connection(index, &"the node closed it");
            }
            if received.bytes == 0 {
                return;
            }
            connection.heard = self.now;
            connection.silent_since = None;
            if let Err(reason) = self.take_frames(index, on) {
                let address = &self.connections[index].address;
                tracing::warn!(address, index, reason, "closing a connection for what came on it");
                return self.fail_connection(index, &reason);
            }
            if !received.more && !closing {
                return;
            }
            self.connections[index].widen(received.more);
        }
    }

    fn take_frames(&mut self, index: usize, on: &mut dyn FnMut(Completion<'_>)) -> Result<(), String> {
        let (received, mut unparsed) = self.connections[index].take_received();
        let result = loop {
            match connection::next_frame(&received, &mut unparsed) {
                Ok(None) => break Ok(()),
                Ok(Some(frame)) => {
                    if let Err(reason) = self.on_frame(index, frame, on) {
                        break Err(reason);
                    }
                }
                Err(error) => break Err(error.to_string()),
            }
        };
        self.connections[index].give_back(received, unparsed);
        result
    }

    fn on_frame(
        &mut self,
        index: usize,
        frame: FrameRef<'_>,
        on: &mut dyn FnMut(Completion<'_>),
    ) -> Result<(), String> {
        self.counters.frames_received += 1;
        match (frame.kind, &self.connections[index].stage) {
            (Kind::Refused, _) => Err(format!("refused: {}", String::from_utf8_lossy(frame.body))),
            (Kind::ClientWelcome, Stage::Greeting(_)) => self.on_welcome(index, frame.body),
            (Kind::Reply, Stage::Ready(_)) => self.on_replies(index, frame.body, on),
            (kind, _) => Err(format!("an unexpected {kind:?} frame")),
        }
    }

    /// Requests may flow, if the node is who it should be.
    fn on_welcome(&mut self, index: usize, body: &[u8]) -> Result<(), String> {
        let welcome: ClientWelcome = serde_json::from_slice(body).map_err(|error| error.to_string())?;
        let shards = usize::from(self.welcome.shards);
        let (node, shard) = (self.routing.nodes()[index / shards], index % shards);
        let is = (welcome.cluster.as_str(), welcome.node.as_str(), usize::from(welcome.shard), welcome.shards);
        let id = node.to_string();
        let expected = (self.welcome.cluster.as_str(), id.as_str(), shard, self.welcome.shards);
        if is != expected {
            return Err(format!("(cluster, node, shard, shards) is {is:?} there, not {expected:?}"));
        }
        self.counters.connected += 1;
        let connection = &mut self.connections[index];
        connection.become_ready();
        let link = Link { connection: index, epoch: connection.epoch };
        let mut queued = mem::take(&mut connection.queued);
        for id in queued.drain(..) {
            if self.requests.get(id).is_some_and(|request| request.place == Place::Queued(link)) {
                self.hand_over(id, link);
            }
        }
        self.connections[index].queued = queued;
        Ok(())
    }

    fn on_replies(&mut self, index: usize, body: &[u8], on: &mut dyn FnMut(Completion<'_>)) -> Result<(), String> {
        let connection = &mut self.connections[index];
        connection.failures = 0;
        connection.awaits = false;
        let link = Link { connection: index, epoch: connection.epoch };
        for reply in native::replies(body) {
            let reply = reply.map_err(|error| error.to_string())?;
            self.on_reply(link, &reply, on);
        }
        Ok(())
    }
}
