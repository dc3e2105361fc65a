//! A small world as a stateright model.

use std::{
    cell::Cell,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Once,
};

use stateright::{Model, Property};

use crate::{
    oracle::Wrong,
    setup::Setup,
    world::{Step, World},
};

thread_local! {
    /// Whether a panic of this thread is a finding, not a failure of the test.
    static IS_FINDING: Cell<bool> = const { Cell::new(false) };
}

/// Whether a property is an invariant: they have numbers.
pub fn is_invariant(property: &str) -> bool {
    property.starts_with(|first: char| first.is_ascii_digit())
}

/// Does something whose panic is a finding.
fn quietly<T>(what: impl FnOnce() -> T) -> Result<T, Wrong> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if !IS_FINDING.get() {
                usual(panic);
            }
        }));
    });
    IS_FINDING.set(true);
    let result = catch_unwind(AssertUnwindSafe(what));
    IS_FINDING.set(false);
    result.map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        Wrong { invariant: 0, what: text.unwrap_or_default() }
    })
}

fn holds<const INVARIANT: u8>(_: &Setup, world: &World) -> bool {
    world.wrong.as_ref().is_none_or(|wrong| wrong.invariant != INVARIANT)
}

/// Invariant 9: where nothing moves any more and nothing is to be asked, all that is needed is time.
fn comes_to_rest(setup: &Setup, world: &World) -> bool {
    // Who never hears the others waits for ever.
    if world.wrong.is_some() || !setup.deaf.is_empty() || !world.is_quiet(setup) {
        return true;
    }
    let mut world = world.clone();
    quietly(|| world.rest(setup)) == Ok(true)
}

impl Model for Setup {
    type State = World;
    type Action = Step;

    fn init_states(&self) -> Vec<World> {
        vec![World::new(self)]
    }

    fn actions(&self, world: &World, steps: &mut Vec<Step>) {
        world.steps(self, steps);
    }

    fn next_state(&self, world: &World, step: Step) -> Option<World> {
        let mut next = world.clone();
        if let Err(wrong) = quietly(|| next.take(self, step)) {
            next = world.clone();
            next.wrong = Some(wrong);
        }
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = vec![
            Property::always("0 the core's own assertions hold", holds::<0>),
            Property::always("1 one command is decided per slot", holds::<1>),
            Property::always("2 a quorum of phase 2 accepted it", holds::<2>),
            Property::always("3 promises never fall", holds::<3>),
            Property::always("4 nothing is accepted below the promise", holds::<4>),
            Property::always("5 replicas agree", holds::<5>),
            Property::always("6 a ballot has one owner", holds::<6>),
            Property::always("7 a command executes at most once", holds::<7>),
            Property::always("8 answers are linearizable", holds::<8>),
            Property::always("9 whoever waits is answered, and replicas become equal", comes_to_rest),
        ];
        properties.extend(self.sights.iter().map(|(name, seen)| Property::sometimes(name, *seen)));
        properties
    }
}
