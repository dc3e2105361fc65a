//! Who should own an object: policies that count the requests of each zone (`protocol.md` §6, §V-A), and Handover.

use super::{
    ObjectIndex, WPaxos,
    message::{KeyBallotHead, Reader, ballot_from},
    phase1::reject_head,
    read::key_ballot_head,
};
use crate::{
    mutant::Mutant,
    protocol::{Micros, RecordId},
    topology::{NodeIndex, StealPolicy, ZoneIndex},
    wire::{Frame, FrameError, Kind},
};

/// What the policy has counted of one object since its owner leads it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Accesses {
    /// The zone of the last request, and how many in a row came from it.
    last: (ZoneIndex, u32),
    /// Requests per zone in this interval.
    counts: Vec<u32>,
    /// Moving averages of the zones' shares, in millionths.
    shares: Vec<u32>,
    interval_began: Micros,
    leads_since: Micros,
    /// When the object was last offered to somebody.
    offered_at: Option<Micros>,
    /// Whom it is to be offered to once this owner has served a request.
    due: Option<ZoneIndex>,
}

/// Distances between zones as a policy sees them, in microseconds.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Distances {
    zones: usize,
    rtt_us: Vec<u32>,
}

const MILLION: u64 = 1_000_000;

impl Distances {
    pub(super) fn new(zones: usize) -> Self {
        Self { zones, rtt_us: vec![0; zones * zones] }
    }

    pub(super) fn set(&mut self, from: ZoneIndex, to: ZoneIndex, rtt_us: u32) {
        self.rtt_us[from.index() * self.zones + to.index()] = rtt_us;
    }

    pub(super) fn get(&self, from: ZoneIndex, to: ZoneIndex) -> u32 {
        self.rtt_us[from.index() * self.zones + to.index()]
    }

    /// What a request of each zone would wait in all if `owner` had the object; `None` while a distance is unknown.
    fn cost(&self, owner: usize, counts: &[u32]) -> Option<u64> {
        let mut sum = 0;
        for (zone, count) in counts.iter().enumerate().filter(|(_, count)| **count > 0) {
            let there = self.rtt_us[zone * self.zones + owner];
            let back = self.rtt_us[owner * self.zones + zone];
            // Each zone measures for itself; either will do.
            let rtt = if there == 0 { back } else { there };
            if rtt == 0 && zone != owner {
                return None;
            }
            sum += u64::from(*count) * u64::from(rtt);
        }
        Some(sum)
    }
}

impl Accesses {
    pub(super) fn new(now: Micros, zones: usize) -> Self {
        Self {
            last: (ZoneIndex(0), 0),
            counts: vec![0; zones],
            shares: vec![0; zones],
            interval_began: now,
            leads_since: now,
            offered_at: None,
            due: None,
        }
    }

    /// Counts a request; the zone that should own the object from now on, if that is another one.
    pub(super) fn note(
        &mut self,
        now: Micros,
        policy: StealPolicy,
        own: ZoneIndex,
        zone: ZoneIndex,
        distances: &Distances,
    ) -> Option<ZoneIndex> {
        self.last = (zone, if self.last.0 == zone { self.last.1.saturating_add(1) } else { 1 });
        self.counts[zone.index()] = self.counts[zone.index()].saturating_add(1);
        let target = match policy {
            StealPolicy::None => None,
            StealPolicy::Immediate => Some(zone),
            StealPolicy::Consecutive { hits } => (self.last.1 >= hits).then_some(zone),
            StealPolicy::Majority { interval_us } => self.interval_over(now, interval_us).then(|| self.majority())?,
            StealPolicy::Ema { alpha_permille, interval_us } => {
                if self.interval_over(now, interval_us) {
                    self.average(alpha_permille);
                }
                self.shares.iter().position(|share| u64::from(*share) * 2 > MILLION).map(zone_at)
            }
            StealPolicy::Cost { gain_permille, window_us, hold_us } => {
                let over = self.interval_over(now, window_us);
                let best = over.then(|| self.cheapest(own, gain_permille, distances))?;
                best.filter(|_| now.since(self.leads_since) >= hold_us)
            }
        };
        if self.interval_over(now, interval_us(policy)) {
            self.interval_began = now;
            self.counts.fill(0);
        }
        target.filter(|zone| *zone != own)
    }

    fn interval_over(&self, now: Micros, interval_us: u64) -> bool {
        now.since(self.interval_began) >= interval_us
    }

    /// The zone with *more* than half of the requests.
    fn majority(&self) -> Option<ZoneIndex> {
        let sum: u64 = self.counts.iter().map(|count| u64::from(*count)).sum();
        self.counts.iter().position(|count| u64::from(*count) * 2 > sum).map(zone_at)
    }

    /// Averages *shares* per zone; zone numbers are names, not quantities.
    fn average(&mut self, alpha_permille: u32) {
        let sum: u64 = self.counts.iter().map(|count| u64::from(*count)).sum();
        let alpha = u64::from(alpha_permille);
        for (share, count) in self.shares.iter_mut().zip(&self.counts) {
            let newest = u64::from(*count) * MILLION / sum.max(1);
            *share = ((u64::from(*share) * (1000 - alpha) + newest * alpha) / 1000) as u32;
        }
    }

    /// The zone with the least waiting, if that is below the given share of today's.
    fn cheapest(&self, own: ZoneIndex, gain_permille: u32, distances: &Distances) -> Option<ZoneIndex> {
        let today = distances.cost(own.index(), &self.counts)?;
        let costs = (0..self.counts.len()).filter_map(|zone| Some((distances.cost(zone, &self.counts)?, zone)));
        let (cost, zone) = costs.min()?;
        (cost * 1000 < today * u64::from(gain_permille)).then(|| zone_at(zone))
    }
}

const fn interval_us(policy: StealPolicy) -> u64 {
    match policy {
        StealPolicy::None | StealPolicy::Immediate | StealPolicy::Consecutive { .. } => u64::MAX,
        StealPolicy::Majority { interval_us } | StealPolicy::Ema { interval_us, .. } => interval_us,
        StealPolicy::Cost { window_us, .. } => window_us,
    }
}

fn zone_at(place: usize) -> ZoneIndex {
    ZoneIndex(place as u8)
}

impl WPaxos {
    /// Counts a request that this node serves as owner; the zone that the policy names is offered the object.
    pub(super) fn note_access(&mut self, now: Micros, object: ObjectIndex, zone: ZoneIndex) {
        let policy = self.config.steal;
        if policy == StealPolicy::None || self.objects[object].leading().is_none() {
            return;
        }
        let own = self.config.my_zone();
        let known = &mut self.objects[object];
        let counted = known.rare.as_ref().is_some_and(|rare| rare.accesses.is_some());
        if zone == own && !counted {
            // Nothing to weigh until another zone has asked.
            return;
        }
        let zones = self.config.zones;
        let accesses = known.rare().accesses.get_or_insert_with(|| Accesses::new(now, zones));
        let Some(target) = accesses.note(now, policy, own, zone, &self.distances) else { return };
        if accesses.offered_at.is_some_and(|at| now.since(at) < self.config.timers.handover_retry_us) {
            return;
        }
        accesses.offered_at = Some(now);
        accesses.due = Some(target);
    }

    /// This owner has served a request of the object: now it may go. Were it offered before, two zones could steal it from
    /// each other for ever without serving anybody.
    pub(super) fn make_due_offer(&mut self, now: Micros, object: ObjectIndex) {
        let accesses = self.objects[object].rare.as_mut().and_then(|rare| rare.accesses.as_mut());
        if let Some(target) = accesses.and_then(|accesses| accesses.due.take()) {
            self.offer(now, object, target);
        }
    }

    /// Asks a live node of the zone to take the object: within a zone the leading is spread by the key's token.
    fn offer(&mut self, now: Micros, object: ObjectIndex, zone: ZoneIndex) {
        assert!(self.objects[object].leading().is_some(), "only the owner offers, and its accesses end with its lead");
        let token = self.objects.token(object);
        let members = self.config.zone_of.iter().enumerate().filter(|(_, of)| **of == zone);
        let live: Vec<NodeIndex> = members
            .map(|(node, _)| NodeIndex(node as u8))
            .filter(|node| self.links[node.index()].is_up() && !self.is_suspected(now, *node))
            .collect();
        if live.is_empty() {
            return;
        }
        let target = live[(token % live.len() as u64) as usize];
        let known = &self.objects[object];
        let head = key_ballot_head(known.promised, &known.key);
        self.links[target.index()].put(Kind::Handover, RecordId::NONE, &head, &[&known.key]);
        self.counters.handovers_sent += 1;
    }

    /// The owner asks this node to take objects over; or somebody who holds what this node's ballot should have decided asks
    /// whether it still does. An offer that something newer has overtaken is void, unless that is a ballot of this node at
    /// which it does not lead, since it has restarted; who made it hears of the newer ballot.
    pub(super) fn on_handovers(&mut self, now: Micros, from: NodeIndex, frame: &Frame) -> Result<(), FrameError> {
        if !self.may_vote() {
            return Ok(());
        }
        let rows = Reader::new(frame).rows(|reader| {
            let head: &KeyBallotHead = reader.take()?;
            reader.zero(head.reserved)?;
            let key = reader.key(head.key_bytes)?;
            Ok((key, ballot_from(reader, frame.config_version, head.ballot)?))
        })?;
        for (key, ballot) in rows {
            let object = self.object_of(key);
            self.hear(now, object, ballot);
            let known = &self.objects[object];
            let is_own = known.promised.owner() == Some(self.config.my_id());
            if known.promised > ballot && !(is_own && known.is_idle()) {
                let head = reject_head(ballot, known.promised, &known.key);
                self.links[from.index()].put(Kind::Reject, RecordId::NONE, &head, &[&known.key]);
            } else if known.is_idle() {
                self.counters.steals += 1;
                self.start_phase1(now, object, None);
                if self.config.has(Mutant::HandoverWithoutPhase1) {
                    self.lead(now, object);
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: ZoneIndex = ZoneIndex(0);
    const B: ZoneIndex = ZoneIndex(1);
    const C: ZoneIndex = ZoneIndex(2);

    /// Who gets the object after these requests, one each 100 µs, while zone A owns it.
    fn decide(policy: StealPolicy, requests: &[ZoneIndex], distances: &Distances) -> Option<ZoneIndex> {
        let mut accesses = Accesses::new(Micros(0), 3);
        let mut last = None;
        for (number, zone) in requests.iter().enumerate() {
            last = accesses.note(Micros(100 * (number as u64 + 1)), policy, A, *zone, distances);
        }
        last
    }

    fn line() -> Distances {
        let mut distances = Distances::new(3);
        for (from, to, rtt) in [(A, A, 1), (B, B, 1), (C, C, 1), (A, B, 10), (B, C, 10), (A, C, 20)] {
            distances.set(from, to, rtt);
        }
        distances
    }

    #[test]
    fn each_policy_moves_when_it_says() {
        use StealPolicy::{Consecutive, Cost, Ema, Immediate, Majority, None as Never};
        let majority = Majority { interval_us: 400 };
        let ema = Ema { alpha_permille: 600, interval_us: 400 };
        let cost = |hold_us| Cost { gain_permille: 800, window_us: 400, hold_us };
        let table: [(StealPolicy, &[ZoneIndex], Option<ZoneIndex>); 16] = [
            (Never, &[B, B, B, B, B, B], None),
            (Immediate, &[B], Some(B)),
            (Immediate, &[A], None),
            (Consecutive { hits: 3 }, &[B, B], None),
            (Consecutive { hits: 3 }, &[B, B, B], Some(B)),
            (Consecutive { hits: 3 }, &[B, B, A, B], None),
            (Consecutive { hits: 1 }, &[C], Some(C)),
            (majority, &[B, B, B], None),
            (majority, &[B, B, B, A], Some(B)),
            (majority, &[B, B, A, C], None), // half is no majority
            (majority, &[A, A, A, B], None),
            (ema, &[B, B, B, B], Some(B)),
            (ema, &[A, C, A, C], None), // zones 1 and 3 do not average to zone 2
            (cost(0), &[C, C, A, C], Some(C)),
            (cost(0), &[A, B, A, B], None),    // no gain
            (cost(1000), &[C, C, C, C], None), // held
        ];
        for (policy, requests, expected) in table {
            assert_eq!(decide(policy, requests, &line()), expected, "{policy:?} after {requests:?}");
        }
        assert_eq!(decide(cost(0), &[A, C, A, C, B], &line()), None, "a new window starts empty");
        assert_eq!(decide(cost(0), &[C, C, C, C], &Distances::new(3)), None, "unknown distances move nothing");
    }
}
