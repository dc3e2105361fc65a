//! What clients speak: native frames, and HTTP.

pub mod http;
pub mod native;
