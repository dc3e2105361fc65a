//! **wpaxos-load**: drives a cluster and reports latency as HDR histograms.
//!
//! A [`plan`] is made from the [`args`]. A [`run`] starts [`worker`]s, each with connections of its own (a
//! [`target`]), that make requests of a [`workload`], by count or by [`schedule`], and [`measure`] what comes of
//! them. What they count is gathered into a [`json`] report, which [`report`] prints, [`html`] draws and [`compare`]
//! sets side by side, and into an interval log ([`hdr`]). A [`sweep`] makes many runs; [`stats`] says what repeats
//! mean. On request single requests are kept: every response time ([`samples`]), and the whole [`history`], which is
//! a file, or is judged ([`check`]), or both.

pub mod args;
mod calls;
pub mod check;
pub mod cluster;
pub mod compare;
pub mod foreign;
mod gather;
pub mod hdr;
pub mod history;
pub mod html;
pub mod json;
pub mod local;
pub mod measure;
pub mod mix;
pub mod paxi;
pub mod plan;
pub mod progress;
pub mod report;
pub mod run;
pub mod samples;
pub mod schedule;
pub mod stats;
pub mod sweep;
pub mod target;
pub mod throttle;
pub mod worker;
pub mod workload;
pub mod zipf;
