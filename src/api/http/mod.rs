//! HTTP as clients speak it to a replica: what a request asks for, and what is answered. Paxi's REST interface, and more.
//!
//! Heads and bodies are hyper's to parse; here is the meaning of a path, a query, a JSON body and a status. Nothing here
//! touches a socket.

mod answer;
mod identity;
mod json;
mod target;

pub use answer::{Verdict, ballot_text, verdict};
pub use identity::{IdentityError, identity};
pub use json::{JsonCommand, JsonError, json_command};
pub use target::{Cut, FaultOrder, Injection, KEY_METHODS, Target, TargetError};
