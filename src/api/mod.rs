//! What clients speak.

pub mod native;
