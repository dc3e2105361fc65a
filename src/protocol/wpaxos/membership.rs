//! Who is alive and who is near: heartbeats, suspicion, distances, and which nodes get the stream first (`protocol.md` §6).

use zerocopy::{IntoBytes, little_endian::U32};

use super::{
    WPaxos,
    message::{HeartbeatHead, Reader},
};
use crate::{
    mutant::Mutant,
    protocol::{Micros, Outputs, RecordId},
    topology::{NodeIndex, ZoneIndex},
    wire::{Frame, FrameError, Kind},
};

impl WPaxos {
    /// Whether a node is taken for dead: then the next request for its objects makes a live node take them over.
    pub(super) fn is_suspected(&self, now: Micros, node: NodeIndex) -> bool {
        let timers = &self.config.timers;
        node != self.config.me
            && !self.config.has(Mutant::NeverSuspected)
            && self.links[node.index()].is_suspected(now, timers)
    }

    /// Notes who is suspected, and who has been heard for long enough to be trusted again.
    pub(super) fn watch_peers(&mut self, now: Micros) {
        let timers = self.config.timers;
        self.links.iter_mut().for_each(|link| link.watch(now, &timers));
    }

    pub(super) fn send_heartbeats(&mut self, now: Micros, out: &mut Outputs) {
        if self.is_log_stalled(now) {
            // A node whose disk has stopped can promise and accept nothing: its peers take it for silent, and go on without.
            return;
        }
        let (zones, own) = (self.config.zones, self.config.my_zone());
        for node in 0..self.links.len() {
            let link = &mut self.links[node];
            if !link.is_up() || now.since(link.heartbeat_sent_at) < self.config.timers.heartbeat_us {
                continue;
            }
            link.heartbeat_sent_at = now;
            let (echo, held) = link.heartbeat.map_or((0, 0), |(echo, at)| (echo, now.since(at)));
            let head = HeartbeatHead { sent_us: now.0.into(), echo_us: echo.into(), held_us: held.into() };
            let mut body = head.as_bytes().to_vec();
            for zone in 0..zones {
                let rtt = self.distances.get(own, ZoneIndex(zone as u8));
                body.extend_from_slice(U32::new(rtt).as_bytes());
            }
            self.links[node].send(Kind::Heartbeat, &body, RecordId(0), out);
        }
    }

    pub(super) fn on_heartbeat(&mut self, now: Micros, from: NodeIndex, frame: &Frame) -> Result<(), FrameError> {
        let mut reader = Reader::new(frame);
        let head: &HeartbeatHead = reader.take()?;
        let row: &[U32] = reader.take_many(self.config.zones)?;
        if !reader.is_empty() {
            return Err(reader.wrong("it names more zones than there are"));
        }
        let link = &mut self.links[from.index()];
        link.heartbeat = Some((head.sent_us.get(), now));
        if head.echo_us.get() > 0 {
            link.echoed_at = link.echoed_at.max(Micros(head.echo_us.get().min(now.0)));
            let sample = now.0.saturating_sub(head.echo_us.get()).saturating_sub(head.held_us.get());
            let sample = sample.clamp(1, u64::from(u32::MAX / 8)) as u32;
            link.rtt_us = if link.rtt_us == 0 { sample } else { (link.rtt_us * 7 + sample) / 8 };
        }
        let zone = self.config.zone_of[from.index()];
        if zone != self.config.my_zone() && self.config.wan.is_none() {
            for (to, rtt) in row.iter().enumerate().filter(|(_, rtt)| rtt.get() > 0) {
                self.distances.set(zone, ZoneIndex(to as u8), rtt.get().min(u32::MAX / 8));
            }
        }
        Ok(())
    }

    /// Distances that the configuration gives.
    pub(super) fn learn_matrix(&mut self) {
        let Some(wan) = &self.config.wan else { return };
        for from in 0..self.config.zones {
            for to in 0..self.config.zones {
                let (from, to) = (ZoneIndex(from as u8), ZoneIndex(to as u8));
                let rtt = u32::try_from(wan.rtt_us(from, to)).unwrap_or(u32::MAX).max(1);
                self.distances.set(from, to, rtt);
            }
        }
    }

    /// Chooses the nodes that get accepts at once: the nearest zones that make a Q2, this node's own first. Without one,
    /// everybody.
    pub(super) fn choose_eager(&mut self, now: Micros) {
        self.measure_zones();
        let own = self.config.my_zone();
        let live = |node: &NodeIndex| {
            *node == self.config.me || self.links[node.index()].is_reliable(now, &self.config.timers)
        };
        let mut order: Vec<NodeIndex> =
            (0..self.links.len()).map(|node| NodeIndex(node as u8)).filter(|node| live(node)).collect();
        order.sort_by_key(|node| {
            let zone = self.config.zone_of[node.index()];
            let distance = self.distances.get(own, zone);
            let distance = if distance == 0 { u32::MAX } else { distance };
            let ring = (node.index() + self.links.len() - self.config.me.index()) % self.links.len();
            (zone != own, distance, zone, ring)
        });
        let quorums = &self.config.quorums;
        let nearest = if self.config.batch.thrifty {
            (1..=order.len()).find_map(|count| quorums.nearest_phase2(&order[..count]))
        } else {
            quorums.nearest_phase2(&order)
        };
        match nearest {
            Some(nearest) => self.eager = nearest,
            None => self.eager = (0..self.links.len()).map(|node| NodeIndex(node as u8)).collect(),
        }
    }

    /// The distance to a zone is that to its nearest node.
    fn measure_zones(&mut self) {
        if self.config.wan.is_some() {
            return;
        }
        let own = self.config.my_zone();
        for zone in 0..self.config.zones {
            let zone = ZoneIndex(zone as u8);
            let links = self.links.iter().zip(&self.config.zone_of);
            let nearest = links.filter(|(link, of)| **of == zone && link.rtt_us > 0).map(|(link, _)| link.rtt_us).min();
            if let Some(nearest) = nearest {
                self.distances.set(own, zone, nearest);
            }
        }
    }

    /// If the nearest Q2 leaves entries uncommitted for too long, everybody gets them at once until it catches up.
    pub(super) fn check_progress(&mut self, now: Micros) {
        if self.stream.last_seq() == self.stream.committed {
            self.progress_at = now;
        }
        self.all_eager = now.since(self.progress_at) > self.config.timers.q2_fallback_us;
    }
}
