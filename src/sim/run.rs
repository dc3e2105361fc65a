//! One run, from its seed to its verdict: a phase in which things go wrong, and in which nothing wrong may be done; then
//! everything heals, and all that was asked must end, all replicas must become equal, and every node must serve every key.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    fmt,
    panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind},
    sync::Once,
};

use super::{
    faults::{Fault, schedule},
    oracle::{Liveness, Memory, Observer, Rule, Violation, linear::History},
    plan::Plan,
    world::{BEGIN_US, Checked, Life, World, sizes_of},
};
use crate::{
    mutant::Mutant,
    protocol::{Protocol, ReadMode},
    topology::NodeIndex,
};

/// Steps that the search for an order of one key's operations takes at most.
const SEARCH_STEPS_MAX: usize = 200_000;

/// More keys than these are not each served by every node in the end.
const MANY_KEYS: u64 = 30;

/// How long replicas have to become equal when nothing is wrong any more.
const EQUAL_WITHIN_US: u64 = 3_000_000;

/// How a run is to be made.
#[derive(Clone, Debug)]
pub struct Options {
    /// What everything follows from.
    pub seed: u64,
    /// A bug to plant.
    pub mutant: Option<Mutant>,
    /// Faults of the schedule that are left out, by their numbers.
    pub without: BTreeSet<usize>,
    /// How many operations clients begin at most, if that is less than the plan's.
    pub operations_max: usize,
    /// Events after which the run ends, without a verdict on what comes then.
    pub steps_max: u64,
    /// Whether to write everything that happens to the standard error.
    pub trace: bool,
}

impl Options {
    /// The whole run of this seed.
    pub fn of(seed: u64) -> Self {
        Self {
            seed,
            mutant: None,
            without: BTreeSet::new(),
            operations_max: usize::MAX,
            steps_max: u64::MAX,
            trace: false,
        }
    }

    /// The command that makes this run again.
    pub fn command(&self) -> String {
        let mut command = format!("cargo run --release -p wpaxos-sim -- --seed {}", self.seed);
        if let Some(mutant) = self.mutant {
            command += &format!(" --mutant {}", mutant.name());
        }
        if !self.without.is_empty() {
            let without: Vec<_> = self.without.iter().map(ToString::to_string).collect();
            command += &format!(" --without {}", without.join(","));
        }
        if self.operations_max != usize::MAX {
            command += &format!(" --operations {}", self.operations_max);
        }
        if self.steps_max != u64::MAX {
            command += &format!(" --steps {}", self.steps_max);
        }
        command
    }
}

/// What a run amounts to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Events handled.
    pub steps: u64,
    /// Virtual microseconds.
    pub time_us: u64,
    /// Operations that clients began.
    pub operations: usize,
    /// Those of them that are known to be executed.
    pub executed: usize,
    /// Faults of the schedule.
    pub faults: usize,
    /// Keys whose search for an order was given up.
    pub undecided: usize,
    /// How long after healing every request had ended and the replicas were equal, in virtual microseconds.
    pub settled_us: u64,
    /// Follows from every frame that was sent, and when.
    pub trace_hash: u64,
}

/// A run that found something wrong.
#[derive(Clone, Debug)]
pub struct Failure {
    /// How it was made.
    pub options: Options,
    /// What is wrong.
    pub violation: Violation,
    /// What the run was about.
    pub plan: String,
    /// The faults that happened, with their numbers.
    pub faults: Vec<(usize, Fault)>,
    /// What was under way: requests, nodes, what they know of each key.
    pub pending: Vec<String>,
    /// How far it came.
    pub summary: Summary,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.violation)?;
        writeln!(f, "after {} events, {} ms of virtual time", self.summary.steps, self.summary.time_us / 1000)?;
        writeln!(f, "{}", self.plan)?;
        writeln!(f, "faults until then:")?;
        for (number, Fault { at_us, long_us, kind }) in &self.faults {
            if *at_us <= self.summary.time_us {
                writeln!(f, "  {number:>3} at {at_us} µs for {long_us} µs: {kind:?}")?;
            }
        }
        writeln!(f, "pending:")?;
        for line in &self.pending {
            writeln!(f, "  {line}")?;
        }
        write!(f, "again: {}", self.options.command())
    }
}

/// Makes one run.
///
/// # Errors
/// What it found wrong.
pub fn run(options: &Options) -> Result<Summary, Box<Failure>> {
    let plan = Plan::new(options.seed);
    let faults = schedule(&plan);
    let mut world = World::new(plan, options.mutant, options.trace);
    world.steps_max = options.steps_max;
    world.clients.operations_max = world.clients.operations_max.min(options.operations_max);
    let mut undecided = 0;
    let ended = quietly(|| {
        world.say(|| world.plan.to_string());
        go(&mut world, &faults, &options.without).map(|given_up| undecided = given_up)
    });
    let violation = match ended {
        Ok(Ok(())) => return Ok(summary(&world, undecided)),
        Ok(Err(violation)) => violation,
        Err(panic) => Rule::Core.broken(panic),
    };
    let numbered = faults.iter().copied().enumerate();
    let faults = numbered.filter(|(number, _)| !options.without.contains(number)).collect();
    let (summary, plan) = (summary(&world, 0), world.plan.to_string());
    // A panic may have left anything half done.
    let pending = quietly(|| pending(&world)).unwrap_or_default();
    Err(Box::new(Failure { options: options.clone(), violation, plan, faults, pending, summary }))
}

fn summary(world: &World, undecided: usize) -> Summary {
    let (operations, executed) = world.clients.counts();
    Summary {
        steps: world.steps,
        time_us: world.now - BEGIN_US,
        operations,
        executed,
        faults: world.faults.len(),
        undecided,
        settled_us: world.settled_us,
        trace_hash: world.trace_hash,
    }
}

thread_local! {
    /// In a run: what the last panic said.
    static PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Runs something whose panics are findings, to be reported and not printed. What a panic says.
fn quietly<T>(act: impl FnOnce() -> T) -> Result<T, String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let others = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic: &PanicHookInfo<'_>| {
            let is_finding =
                PANIC.with_borrow_mut(|said| said.as_mut().map(|said| *said = panic.to_string()).is_some());
            if !is_finding {
                others(panic);
            }
        }));
    });
    PANIC.set(Some(String::new()));
    let result = catch_unwind(AssertUnwindSafe(act));
    let said = PANIC.take().unwrap_or_default();
    result.map_err(|_| said)
}

/// How many keys' searches were given up.
fn go(world: &mut World, faults: &[Fault], without: &BTreeSet<usize>) -> Checked<usize> {
    for node in 0..world.machines.len() {
        world.start(node)?;
    }
    if world.plan.founded {
        let limit = world.now + EQUAL_WITHIN_US;
        world.run(limit, |world| have_votes(world).is_ok())?;
        if world.steps < world.steps_max {
            have_votes(world)?;
        }
    }
    world.begin_weather(faults, without);
    world.begin_clients();
    world.begin_hostile();
    let storm = world.now + world.plan.storm_us;
    world.run(storm + 50_000, |_| false)?;
    finish_requests(world)?;
    if world.steps < world.steps_max {
        become_equal(world, "after healing")?;
        world.settled_us = world.now - storm;
        world.liveness.check_settled(world.settled_us, world.plan.settles_within_us())?;
        serve_everything(world)?;
        become_equal(world, "in the end")?;
        come_to_rest(world)?;
    }
    check_histories(world)
}

/// Nobody asks for anything new: every request ends.
fn finish_requests(world: &mut World) -> Checked {
    world.clients.closed = true;
    world.end_hostile();
    let timeout = world.plan.tuning.timers.request_timeout_us;
    let slowest = world.plan.clock_ppm.iter().min().copied().unwrap_or(1_000_000);
    let limit = world.now + 5 * (timeout * 1_000_000 / slowest + world.plan.patience_us);
    world.liveness.extended(limit);
    world.run_until(limit, |world| world.clients.are_done())?;
    if world.steps >= world.steps_max {
        return Ok(());
    }
    world.liveness.check_requests(world.now)
}

/// All live replicas know the same, and nothing is under way.
fn become_equal(world: &mut World, when: &str) -> Checked {
    let limit = world.now + EQUAL_WITHIN_US;
    world.run_until(limit, |world| are_equal(world).is_ok())?;
    match are_equal(world) {
        Err(violation) if world.steps < world.steps_max => {
            Err(Violation { text: format!("{when}: {}", violation.text), ..violation })
        }
        _ => Ok(()),
    }
}

/// All live nodes have a vote, in the same configuration version.
fn have_votes(world: &World) -> Checked {
    let mut versions = BTreeMap::new();
    for (node, shard, state) in world.shards() {
        let witness = state.shard.protocol();
        let core = witness.core();
        let first = *versions.entry(shard).or_insert(core.version());
        if !core.has_vote() || core.version() != first {
            let text = format!("shard {shard} of node {node} has no vote in version {first}: {:?}", core.membership());
            return Err(Rule::NotConverged.broken(text));
        }
    }
    Ok(())
}

fn are_equal(world: &World) -> Checked {
    have_votes(world)?;
    let mut nodes = Vec::new();
    for node in world.live() {
        let Life::Up(process) = &world.machines[node].life else { continue };
        let witnesses: Vec<_> = process.shards.iter().map(|state| state.shard.protocol()).collect();
        let cores: Vec<_> = witnesses.iter().map(|witness| witness.core()).collect();
        nodes.push(Observer::snapshot(NodeIndex(node as u8), &cores)?);
    }
    Liveness::check_equal(&world.executed(), &nodes)
}

/// Every live node serves every key, in every way; where there are many keys, each is served by one of the nodes.
fn serve_everything(world: &mut World) -> Checked {
    let live: Vec<usize> = world.live().collect();
    let many = world.plan.keys() > MANY_KEYS;
    for key in 0..world.plan.keys() {
        let chosen = [live[key as usize % live.len()]];
        for node in if many { &chosen } else { live.as_slice() } {
            world.must_succeed(*node, key, true, ReadMode::Confirm)?;
            world.must_succeed(*node, key, false, ReadMode::Confirm)?;
        }
        if !many {
            world.must_succeed(live[0], key, false, ReadMode::Log)?;
        }
    }
    Ok(())
}

/// Nothing is kept for nothing, once what is under way has arrived.
fn come_to_rest(world: &mut World) -> Checked {
    let limit = world.now + EQUAL_WITHIN_US;
    world.run(limit, |world| rests(world).is_ok())?;
    if world.steps >= world.steps_max { Ok(()) } else { rests(world) }
}

fn rests(world: &World) -> Checked {
    let mut memory = Memory::new(world.plan.sizes_at_rest());
    for (node, shard, state) in world.shards() {
        memory.sample(NodeIndex(node as u8), shard as u16, &sizes_of(state))?;
    }
    Ok(())
}

/// Linearizability per key; how many keys' searches were given up.
fn check_histories(world: &World) -> Checked<usize> {
    let mut history = History::default();
    for key in 0..world.plan.keys() {
        for operation in world.clients.history(key) {
            history.add(key, operation);
        }
    }
    world.hostile.histories().for_each(|(key, operation)| history.add(key, operation));
    history.check(SEARCH_STEPS_MAX).map(|given_up| given_up.len())
}

/// What is under way, in words.
fn pending(world: &World) -> Vec<String> {
    let mut lines = world.clients.waiting();
    for (node, machine) in world.machines.iter().enumerate() {
        let id = world.plan.cluster.member(NodeIndex(node as u8)).id;
        match &machine.life {
            Life::Dead => lines.push(format!("node {node} ({id}) is dead")),
            Life::Down => lines.push(format!("node {node} ({id}) is down")),
            Life::Up(_) => {}
        }
    }
    for (node, shard, state) in world.shards() {
        let witness = state.shard.protocol();
        let core = witness.core();
        for object in core.objects() {
            let (key, promised, applied) = (String::from_utf8_lossy(object.key), object.promised, object.applied);
            let leads = if object.leads { ", leads" } else { "" };
            let tail: Vec<_> = core.accepted(object.key).iter().map(|entry| (entry.slot, entry.ballot)).collect();
            lines.push(format!("{node}/{shard} {key}: promised {promised:?}, applied {applied}{leads}, tail {tail:?}"));
        }
    }
    lines
}
