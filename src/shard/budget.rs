//! The memory that the clients of a shard hold: one budget, by bytes, for all of them and over all ways to hold some.

use std::{cell::Cell, rc::Rc};

/// What the clients of a shard hold, and the most that they may.
///
/// Everything is counted when it is there: the check comes first, so that the last one may go over it by what it brings.
#[derive(Debug)]
pub(super) struct Budget {
    used: Cell<usize>,
    max: usize,
}

impl Budget {
    /// A budget of `max` bytes (`flow.client_memory_bytes_max`).
    pub(super) fn new(max: usize) -> Rc<Self> {
        Rc::new(Self { used: Cell::new(0), max })
    }

    /// Bytes that are held.
    pub(super) fn used(&self) -> usize {
        self.used.get()
    }

    /// Bytes that are held beyond the most.
    pub(super) fn excess(&self) -> usize {
        self.used.get().saturating_sub(self.max)
    }

    /// Whether nothing more may be taken.
    pub(super) fn is_spent(&self) -> bool {
        self.used.get() >= self.max
    }
}

/// Bytes that are held, as long as this lives.
#[derive(Debug)]
pub(super) struct Held {
    /// None for what is not a client's.
    budget: Option<Rc<Budget>>,
    bytes: Cell<usize>,
}

impl Held {
    /// So many bytes of a budget.
    pub(super) fn new(budget: Option<Rc<Budget>>, bytes: usize) -> Self {
        let held = Self { budget, bytes: Cell::new(0) };
        held.set(bytes);
        held
    }

    /// How many they are.
    pub(super) fn bytes(&self) -> usize {
        self.bytes.get()
    }

    /// They are so many from now on.
    pub(super) fn set(&self, bytes: usize) {
        let before = self.bytes.replace(bytes);
        if let Some(budget) = &self.budget {
            budget.used.set(budget.used.get() - before + bytes);
        }
    }

    /// The same number of bytes in another budget.
    pub(super) fn of(&self, budget: &Rc<Budget>) -> Self {
        Self::new(Some(Rc::clone(budget)), self.bytes())
    }

    /// As many bytes of the same budget again, for memory that takes the place of this.
    pub(super) fn another(&self, bytes: usize) -> Self {
        Self::new(self.budget.clone(), bytes)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.set(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_is_counted_once_and_given_back() {
        let budget = Budget::new(100);
        let first = Held::new(Some(Rc::clone(&budget)), 60);
        let free = Held::new(None, 1000);
        assert!(budget.used() == 60 && !budget.is_spent());
        let charged = free.of(&budget);
        assert_eq!((budget.used(), budget.excess()), (1060, 960));
        drop(free);
        charged.set(40);
        assert!(budget.is_spent() && budget.excess() == 0);
        drop(first);
        let other = charged.another(7);
        drop(charged);
        assert_eq!((budget.used(), other.bytes()), (7, 7));
        drop(other);
        assert_eq!(budget.used(), 0);
    }
}
