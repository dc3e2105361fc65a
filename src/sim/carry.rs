//! How the world carries bytes: dialling, delays, delivery, and connections that end.

use super::{
    net::{Conn, End, Piece, Side, SimSocket},
    oracle::Rule,
    plan::{Crashes, Weather},
    world::{Checked, Event, Path, World},
};
use crate::{
    shard::{Code, Ended, Reading},
    topology::NodeIndex,
};

impl World {
    pub(super) fn dial(&mut self, node: usize, boot: u32, shard: usize, peer: usize) -> Checked {
        if self.process(node, boot).is_none() {
            return Ok(());
        }
        if self.machines[node].paused_until > self.now {
            let later = self.machines[node].paused_until;
            self.at(later, Event::Dial { node, boot, shard, peer });
            return Ok(());
        }
        let blocked = self.path(node, peer).blocked_until.max(self.path(peer, node).blocked_until);
        let peer_boot = self.machines[peer].boot;
        if blocked > self.now || self.process(peer, peer_boot).is_none() {
            self.dial_again(node, boot, shard, peer, false);
            return Ok(());
        }
        let ends = [End::Shard { node, boot, shard }, End::Shard { node: peer, boot: peer_boot, shard }];
        let (conn, [ours, theirs]) = self.connect(ends);
        let now = self.now;
        let process = self.process(node, boot).expect("just seen");
        process.set_time(now);
        process.call(shard, conn, ours, peer).expect("a new connection takes a hello");
        let listener = self.process(peer, peer_boot).expect("just seen");
        listener.set_time(now);
        listener.accept(shard, conn, theirs);
        self.carry();
        Ok(())
    }

    /// A new connection.
    pub(super) fn connect(&mut self, ends: [End; 2]) -> (usize, [SimSocket; 2]) {
        let place = self.conns.len();
        let (conn, sockets) = Conn::new(ends, place, self.plan.window_bytes, self.now, &self.touched);
        self.conns.push(conn);
        (place, sockets)
    }

    fn dial_again(&mut self, node: usize, boot: u32, shard: usize, peer: usize, was_up: bool) {
        let now = self.now;
        let Some(process) = self.process(node, boot) else { return };
        let dial = &mut process.shards[shard].dials[peer];
        dial.conn = None;
        if was_up {
            dial.backoff.reset();
        }
        let later = now + dial.backoff.next_us();
        self.at(later, Event::Dial { node, boot, shard, peer });
    }

    /// Takes what was written, and carries it.
    pub(super) fn carry(&mut self) {
        loop {
            let touched = std::mem::take(&mut *self.touched.borrow_mut());
            if touched.is_empty() {
                return;
            }
            for (conn, side) in touched {
                let (bytes, shut) = self.conns[conn].take_outgoing(side);
                if !bytes.is_empty() {
                    self.launch(conn, side, bytes);
                }
                if shut {
                    self.hang_up(conn, side);
                }
            }
        }
    }

    fn launch(&mut self, conn: usize, side: Side, mut bytes: Vec<u8>) {
        let usual = self.usual_delay(conn, side);
        let heavy = self.has_heavy_tails();
        while !bytes.is_empty() {
            let random = &mut self.random.network;
            let cut = random.permille(self.plan.pieces_permille) && bytes.len() > 1;
            let rest = if cut { bytes.split_off(random.range(1, bytes.len() as u64 - 1) as usize) } else { Vec::new() };
            let takes = random.delay(usual, heavy);
            self.send_piece(conn, side, takes, Piece::Bytes(bytes));
            bytes = rest;
        }
    }

    pub(super) fn send_piece(&mut self, conn: usize, side: Side, takes: u64, piece: Piece) {
        if let Some(arrival) = self.conns[conn].launch(side, self.now, takes, piece) {
            self.at(arrival, Event::Deliver { conn, from: side });
        }
    }

    /// A side closes: the other one reads what is under way, then the end; this one reads no more.
    pub(super) fn hang_up(&mut self, conn: usize, side: Side) {
        let takes = self.usual_delay(conn, side);
        self.send_piece(conn, side, takes, Piece::End);
        if !self.conns[conn].closed[side] {
            let end_at = self.conns[conn].cut(1 - side, 0, self.now);
            self.at(end_at, Event::Deliver { conn, from: 1 - side });
        }
    }

    pub(super) fn has_heavy_tails(&self) -> bool {
        !self.healed && self.plan.weather != Weather::Calm
    }

    fn usual_delay(&self, conn: usize, side: Side) -> u64 {
        let ends = self.conns[conn].ends;
        let zone = |end: End| match end {
            End::Shard { node, .. } => self.plan.cluster.member(NodeIndex(node as u8)).zone.index(),
            End::Client(client) => self.clients.zone_of(client),
        };
        let usual = self.plan.delays_us[zone(ends[side])][zone(ends[1 - side])];
        let path = self.path_of(ends, side);
        usual + if path.slow.0 > self.now { path.slow.1 } else { 0 }
    }

    fn path_of(&self, ends: [End; 2], from: Side) -> Path {
        match (ends[from], ends[1 - from]) {
            (End::Shard { node: a, .. }, End::Shard { node: b, .. }) => self.paths[a * self.machines.len() + b],
            _ => Path::default(),
        }
    }

    /// How it is from one node to another.
    pub(super) fn path(&mut self, from: usize, to: usize) -> &mut Path {
        let place = from * self.machines.len() + to;
        &mut self.paths[place]
    }

    pub(super) fn deliver(&mut self, conn: usize, from: Side) -> Checked {
        let ends = self.conns[conn].ends;
        let silent_until = self.path_of(ends, from).silent_until;
        if silent_until > self.now {
            if self.conns[conn].next_arrival(from).is_some() {
                // Clogged links are released in any order.
                let later = silent_until + self.random.network.below(2000);
                self.at(later, Event::Deliver { conn, from });
            }
            return Ok(());
        }
        match ends[1 - from] {
            End::Shard { node, boot, shard } => self.deliver_to_shard(conn, from, (node, boot, shard)),
            End::Client(client) => self.deliver_to_client(conn, from, client),
        }
    }

    fn deliver_to_client(&mut self, conn: usize, from: Side, client: usize) -> Checked {
        if self.is_deaf(client, conn) && !self.conns[conn].is_broken() {
            return Ok(());
        }
        while let Some(piece) = self.conns[conn].arrived(from, self.now) {
            if self.conns[conn].closed[1 - from] {
                return Ok(());
            }
            if let Some(who) = self.hostile_of(client) {
                match piece {
                    Piece::Bytes(bytes) => self.hostile_reads(who, conn, &bytes)?,
                    Piece::End => self.hostile_cut_off(who, conn),
                }
                continue;
            }
            match piece {
                Piece::Bytes(bytes) => self.client_reads(client, conn, &bytes)?,
                Piece::End => self.client_cut_off(client, conn),
            }
        }
        Ok(())
    }

    fn deliver_to_shard(&mut self, conn: usize, from: Side, (node, boot, shard): (usize, u32, usize)) -> Checked {
        let now = self.now;
        let paused_until = self.machines[node].paused_until;
        let Some(process) = self.process(node, boot) else { return Ok(()) };
        if paused_until > now {
            self.at(paused_until, Event::Deliver { conn, from });
            return Ok(());
        }
        process.set_time(now);
        loop {
            let Some(process) = self.process(node, boot) else { return Ok(()) };
            if process.shards[shard].paused.contains(&conn) {
                return Ok(());
            }
            let Some(piece) = self.conns[conn].arrived(from, now) else { return Ok(()) };
            self.read(conn, (node, boot, shard), piece, from)?;
        }
    }

    /// A shard reads a piece of what has come.
    fn read(&mut self, conn: usize, at: (usize, u32, usize), piece: Piece, from: Side) -> Checked {
        let (node, boot, shard) = at;
        let now = self.now;
        let Some(process) = self.process(node, boot) else { return Ok(()) };
        let state = &mut process.shards[shard];
        let Some(session) = state.sessions.get_mut(&conn) else { return Ok(()) };
        let mut unread: &[u8] = &[];
        let read = match &piece {
            Piece::End => session.received(&state.shard, 0),
            Piece::Bytes(bytes) => {
                let spare = session.spare();
                let take = bytes.len().min(spare.len());
                spare[..take].copy_from_slice(&bytes[..take]);
                unread = &bytes[take..];
                session.received(&state.shard, take)
            }
        };
        let paused = matches!(read, Ok(Reading::Paused));
        if paused {
            state.paused.push(conn);
        }
        if let Err(ended) = read {
            self.end_session(conn, at, &ended)?;
        } else if !unread.is_empty() {
            self.conns[conn].put_back(from, now, unread.to_vec());
        }
        self.look_at(node, shard)
    }

    /// A session is over: its connection goes, and a dialler dials again.
    fn end_session(&mut self, conn: usize, at: (usize, u32, usize), ended: &Ended) -> Checked {
        let (node, boot, shard) = at;
        let process = self.process(node, boot).expect("it has just read");
        let state = &mut process.shards[shard];
        let session = state.sessions.remove(&conn).expect("it has just read");
        let was_up = session.is_established();
        session.end(&state.shard, ended);
        state.paused.retain(|paused| *paused != conn);
        let dialled = state.dials.iter().position(|dial| dial.conn == Some(conn));
        self.say(|| format!("{node}/{shard}: connection {conn} ends: {ended:?}"));
        if let Ended::Refused(refusal) = ended
            && self.mutant.is_none()
        {
            // Peers and careful clients send nothing that is wrong. A node that comes back as somebody else may find
            // that its earlier connections have not ended yet.
            let is_hostile =
                matches!(self.conns[conn].ends[0], End::Client(client) if self.hostile_of(client).is_some());
            let expected = is_hostile || (refusal.code == Code::Taken && self.plan.crashes == Crashes::LoseDisk);
            if !expected {
                return Err(Rule::Core.broken(format!("node {node} refuses what a peer sends: {refusal}")));
            }
        }
        self.carry();
        let side = usize::from(self.conns[conn].ends[0] != End::Shard { node, boot, shard });
        self.hang_up(conn, side);
        self.conns[conn].leave(side);
        if let Some(peer) = dialled {
            self.dial_again(node, boot, shard, peer, was_up);
        }
        Ok(())
    }

    /// Goes on reading from connections that the last turn has let go on.
    pub(super) fn resume_readers(&mut self, node: usize, boot: u32, shard: usize) -> Checked {
        let Some(process) = self.process(node, boot) else { return Ok(()) };
        let state = &mut process.shards[shard];
        let mut resumed = Vec::new();
        state.paused.retain(|conn| {
            let goes_on = state.sessions.get(conn).is_none_or(|session| session.connection().resume.take());
            if goes_on {
                resumed.push(*conn);
            }
            !goes_on
        });
        for conn in resumed {
            let Some(process) = self.process(node, boot) else { return Ok(()) };
            let state = &mut process.shards[shard];
            let Some(session) = state.sessions.get_mut(&conn) else { continue };
            match session.go_on(&state.shard) {
                Ok(Reading::On) => {
                    let from = usize::from(self.conns[conn].ends[0] == End::Shard { node, boot, shard });
                    self.at(self.now, Event::Deliver { conn, from });
                }
                Ok(Reading::Paused) => state.paused.push(conn),
                Err(ended) => self.end_session(conn, (node, boot, shard), &ended)?,
            }
        }
        Ok(())
    }

    /// Cuts a connection: of what is under way each way, some bytes arrive, and each side sees the end after a time of its
    /// own.
    pub(super) fn cut(&mut self, conn: usize) {
        for side in 0..2 {
            let under_way = self.conns[conn].under_way(side) as u64;
            let random = &mut self.random.network;
            let keep = if random.permille(500) { random.below(under_way + 1) } else { 0 };
            let notice = if random.permille(200) { 30_000 } else { 900 };
            let end_at = self.now + random.below(notice);
            let end_at = self.conns[conn].cut(side, keep as usize, end_at);
            self.at(end_at, Event::Deliver { conn, from: side });
        }
    }
}
