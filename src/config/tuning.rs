//! The tuning file: reading it, and what its numbers must be by themselves and next to each other.

use std::path::Path;

use super::{ConfigError, FieldError, parse, read};
use crate::{protocol::IDLE_TICK_US, tuning::Tuning, wire};

/// An hour: no timer means longer.
const TIMER_US_MAX: u64 = 3_600_000_000;
/// No bound on memory means more than this.
const MEMORY_BYTES_MAX: u64 = 1 << 40;
/// A batch is sent once it reaches its limit, so a frame holds up to one more command than that.
const BATCH_BYTES_MAX: u64 = wire::BATCH_BYTES_MAX as u64;
/// Uncommitted bytes of a stream, all of which the next owners may have to take over.
const INFLIGHT_BYTES_MAX: u64 = 32 << 20;

/// A knob, its value, and from what to what it may be.
type Bounds = (&'static str, u64, u64, u64);
/// So many times the first knob must be at most the second.
type AtMost = (u64, (&'static str, u64), (&'static str, u64));

impl Tuning {
    /// Reads and checks a tuning file. What it leaves out has its default.
    ///
    /// # Errors
    /// If the file cannot be read, has a key that is none, or a value that [`Tuning::check`] refuses.
    pub fn load(file: impl AsRef<Path>) -> Result<Self, ConfigError> {
        let file = file.as_ref();
        Self::parse(&read(file)?, file)
    }

    /// The same for the text of a tuning file. `file` is for messages.
    ///
    /// # Errors
    /// As [`Tuning::load`].
    pub fn parse(text: &str, file: &Path) -> Result<Self, ConfigError> {
        let tuning: Self = parse(text, file)?;
        tuning.check().map_err(|wrong| wrong.in_file(file))?;
        Ok(tuning)
    }

    /// Checks every knob by itself and next to the others.
    ///
    /// # Errors
    /// Names the first knob that cannot be as it is, and what would be right.
    pub fn check(&self) -> Result<(), FieldError> {
        if self.name.trim().is_empty() {
            return Err(FieldError::new("name", "is empty: reports name the tuning by it"));
        }
        let bounds = self
            .batch_and_flow_bounds()
            .into_iter()
            .chain(self.timer_bounds())
            .chain(self.system_bounds())
            .chain(self.log_bounds());
        for (key, value, min, max) in bounds {
            if !(min..=max).contains(&value) {
                return Err(FieldError::new(key, format!("{value} must be from {min} to {max}")));
            }
        }
        for (times, (key, value), (other, bound)) in self.relations() {
            if value.saturating_mul(times) > bound {
                let product = if times == 1 { String::new() } else { format!("{times} times ") };
                let problem = format!("{product}{value} must be at most {other}, which is {bound}");
                return Err(FieldError::new(key, problem));
            }
        }
        self.check_sizes_of_its_own()
    }

    /// Sizes that are not just from a minimum to a maximum.
    fn check_sizes_of_its_own(&self) -> Result<(), FieldError> {
        for (key, bytes) in [
            ("sockets.send_buffer_bytes", self.sockets.send_buffer_bytes),
            ("sockets.receive_buffer_bytes", self.sockets.receive_buffer_bytes),
        ] {
            if bytes != 0 && !(4096..=1 << 30).contains(&bytes) {
                let problem = format!("{bytes} must be 0, which leaves it to the kernel, or from 4096 to {}", 1 << 30);
                return Err(FieldError::new(key, problem));
            }
        }
        if !self.log.segment_bytes.is_multiple_of(4096) {
            let next = self.log.segment_bytes.next_multiple_of(4096);
            let problem = format!("{} must be a multiple of 4096, as in {next}", self.log.segment_bytes);
            return Err(FieldError::new("log.segment_bytes", problem));
        }
        if !self.placement.ring_depth.is_power_of_two() {
            let next = self.placement.ring_depth.next_power_of_two();
            let problem = format!("{} must be a power of two, as in {next}", self.placement.ring_depth);
            return Err(FieldError::new("placement.ring_depth", problem));
        }
        let mut cores = self.placement.cores.clone();
        cores.sort_unstable();
        match cores.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => {
                let problem = format!("core {} is listed twice: a shard needs one of its own", pair[0]);
                Err(FieldError::new("placement.cores", problem))
            }
            None => Ok(()),
        }
    }

    fn batch_and_flow_bounds(&self) -> [Bounds; 15] {
        let (batch, flow) = (&self.batch, &self.flow);
        [
            ("batch.linger_us", batch.linger_us, 0, 1_000_000),
            ("batch.entries_max", batch.entries_max as u64, 1, 65_535),
            ("batch.bytes_max", batch.bytes_max as u64, 1024, BATCH_BYTES_MAX),
            ("batch.learner_delay_us", batch.learner_delay_us, 0, 1_000_000),
            ("batch.learner_bytes", batch.learner_bytes as u64, 1024, BATCH_BYTES_MAX),
            ("batch.commit_delay_us", batch.commit_delay_us, 0, 1_000_000),
            ("flow.requests_max", flow.requests_max as u64, 1, 1 << 32),
            ("flow.stream_inflight_bytes_max", flow.stream_inflight_bytes_max as u64, 1024, INFLIGHT_BYTES_MAX),
            ("flow.stream_retain_bytes", flow.stream_retain_bytes as u64, 0, MEMORY_BYTES_MAX),
            ("flow.stream_unacked_bytes_max", flow.stream_unacked_bytes_max as u64, 1024, MEMORY_BYTES_MAX),
            ("flow.link_queue_bytes_max", flow.link_queue_bytes_max as u64, 1024, MEMORY_BYTES_MAX),
            ("flow.client_connections_max", flow.client_connections_max as u64, 1, 1 << 20),
            ("flow.client_memory_bytes_max", flow.client_memory_bytes_max as u64, 16 << 20, MEMORY_BYTES_MAX),
            ("flow.client_requests_max", flow.client_requests_max as u64, 1, 1 << 32),
            ("flow.client_queue_bytes_max", flow.client_queue_bytes_max as u64, 1024, MEMORY_BYTES_MAX),
        ]
    }

    fn timer_bounds(&self) -> [Bounds; 20] {
        let timers = &self.timers;
        let timer = |key, value| (key, value, 1, TIMER_US_MAX);
        [
            timer("timers.request_timeout_us", timers.request_timeout_us),
            timer("timers.heartbeat_us", timers.heartbeat_us),
            timer("timers.suspect_silent_us", timers.suspect_silent_us),
            timer("timers.suspect_down_us", timers.suspect_down_us),
            ("timers.suspect_recover_us", timers.suspect_recover_us, 0, TIMER_US_MAX),
            timer("timers.takeover_delay_us", timers.takeover_delay_us),
            timer("timers.prepare_retry_us", timers.prepare_retry_us),
            timer("timers.backoff_min_us", timers.backoff_min_us),
            timer("timers.backoff_max_us", timers.backoff_max_us),
            timer("timers.confirm_retry_us", timers.confirm_retry_us),
            timer("timers.gap_delay_us", timers.gap_delay_us),
            timer("timers.orphan_delay_us", timers.orphan_delay_us),
            timer("timers.handover_retry_us", timers.handover_retry_us),
            timer("timers.q2_fallback_us", timers.q2_fallback_us),
            ("timers.tick_us", timers.tick_us, 100, IDLE_TICK_US),
            timer("timers.reconnect_min_us", timers.reconnect_min_us),
            timer("timers.reconnect_max_us", timers.reconnect_max_us),
            timer("timers.client_frame_timeout_us", timers.client_frame_timeout_us),
            timer("timers.client_unread_timeout_us", timers.client_unread_timeout_us),
            ("timers.stop_grace_us", timers.stop_grace_us, 0, TIMER_US_MAX),
        ]
    }

    fn system_bounds(&self) -> [Bounds; 4] {
        [
            ("sockets.read_bytes", self.sockets.read_bytes as u64, 4096, 16 << 20),
            ("placement.poll_idle_us", self.placement.poll_idle_us, 0, TIMER_US_MAX),
            ("placement.ring_depth", self.placement.ring_depth as u64, 16, 32_768),
            // The runtime refuses less.
            ("placement.io_memory_bytes", self.placement.io_memory_bytes as u64, 65_536, 1 << 30),
        ]
    }

    fn log_bounds(&self) -> [Bounds; 5] {
        let log = &self.log;
        [
            ("log.segment_bytes", log.segment_bytes as u64, 65_536, 1 << 30),
            ("log.group_bytes_max", log.group_bytes_max as u64, 4096, 64 << 20),
            ("log.sync_interval_us", log.sync_interval_us, 1000, 60_000_000),
            ("log.checkpoint_log_bytes", log.checkpoint_log_bytes, 65_536, MEMORY_BYTES_MAX),
            ("log.pending_bytes_max", log.pending_bytes_max as u64, 65_536, MEMORY_BYTES_MAX),
        ]
    }

    fn relations(&self) -> [AtMost; 15] {
        let log = &self.log;
        let (batch, flow, timers) = (&self.batch, &self.flow, &self.timers);
        let timeout = ("timers.request_timeout_us", timers.request_timeout_us);
        let inflight = ("flow.stream_inflight_bytes_max", flow.stream_inflight_bytes_max as u64);
        let link = ("flow.link_queue_bytes_max", flow.link_queue_bytes_max as u64);
        let queue = ("flow.client_queue_bytes_max", flow.client_queue_bytes_max as u64);
        let memory = ("flow.client_memory_bytes_max", flow.client_memory_bytes_max as u64);
        [
            // What each connection takes, whatever it does.
            (16_384, ("flow.client_connections_max", flow.client_connections_max as u64), memory),
            (1, queue, memory),
            (1, ("batch.bytes_max", batch.bytes_max as u64), inflight),
            (1, ("batch.bytes_max", batch.bytes_max as u64), link),
            (
                1,
                ("batch.bytes_max", batch.bytes_max as u64),
                ("flow.stream_unacked_bytes_max", flow.stream_unacked_bytes_max as u64),
            ),
            // What its own stream has under way must not by itself be too much for a node's log.
            (1, inflight, ("log.pending_bytes_max", log.pending_bytes_max as u64)),
            (1, ("batch.learner_bytes", batch.learner_bytes as u64), link),
            // A healthy peer must have had a second chance to be heard.
            (2, ("timers.heartbeat_us", timers.heartbeat_us), ("timers.suspect_silent_us", timers.suspect_silent_us)),
            (1, ("timers.backoff_min_us", timers.backoff_min_us), ("timers.backoff_max_us", timers.backoff_max_us)),
            (
                1,
                ("timers.reconnect_min_us", timers.reconnect_min_us),
                ("timers.reconnect_max_us", timers.reconnect_max_us),
            ),
            (1, ("log.group_bytes_max", log.group_bytes_max as u64), ("log.segment_bytes", log.segment_bytes as u64)),
            (
                1,
                ("log.segment_bytes", log.segment_bytes as u64),
                ("log.checkpoint_log_bytes", log.checkpoint_log_bytes),
            ),
            // What is tried again must be so before the request that waits for it is given up.
            (2, ("timers.prepare_retry_us", timers.prepare_retry_us), timeout),
            (2, ("timers.confirm_retry_us", timers.confirm_retry_us), timeout),
            (2, ("timers.q2_fallback_us", timers.q2_fallback_us), timeout),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Tuning, ConfigError> {
        Tuning::parse(text, Path::new("t.toml"))
    }

    /// The files in `tuning/`, by name.
    const FILES: [(&str, &str); 7] = [
        ("default", include_str!("../../tuning/default.toml")),
        ("latency", include_str!("../../tuning/latency.toml")),
        ("throughput", include_str!("../../tuning/throughput.toml")),
        ("dedicated", include_str!("../../tuning/dedicated.toml")),
        ("durable", include_str!("../../tuning/durable.toml")),
        ("wan", include_str!("../../tuning/wan.toml")),
        ("laptop", include_str!("../../tuning/laptop.toml")),
    ];

    #[test]
    fn the_default_file_is_the_default_and_every_file_has_every_knob() {
        assert_eq!(parsed(FILES[0].1).unwrap(), Tuning::default());
        for (name, text) in FILES {
            let file: toml::Table = text.parse().unwrap();
            let whole = toml::Table::try_from(parsed(text).unwrap()).unwrap();
            assert_eq!(file, whole, "a knob is missing in {name}.toml");
        }
    }

    #[test]
    fn the_files_say_something_about_every_knob() {
        for (name, text) in FILES {
            let text = &text[text.find("[batch]").expect("what is before is said in the first lines")..];
            let lines: Vec<&str> = text.lines().collect();
            for (index, line) in lines.iter().enumerate().filter(|(_, line)| line.contains(" = ")) {
                assert!(
                    line.starts_with('#') || lines[index - 1].starts_with('#'),
                    "{name}: no comment above `{line}`"
                );
            }
        }
    }

    #[test]
    fn no_two_files_are_the_same_but_for_their_names() {
        for (place, (name, text)) in FILES.iter().enumerate() {
            for (other, of) in &FILES[..place] {
                let like = Tuning { name: String::new(), purpose: String::new(), ..parsed(text).unwrap() };
                let same = Tuning { name: String::new(), purpose: String::new(), ..parsed(of).unwrap() };
                assert!(like != same, "{name} and {other} say the same");
            }
        }
    }

    #[test]
    fn the_files_that_come_with_us_are_named_as_they_are_and_differ() {
        let tunings: Vec<Tuning> = FILES.iter().map(|(_, text)| parsed(text).unwrap()).collect();
        for (tuning, (name, _)) in tunings.iter().zip(FILES) {
            assert_eq!(tuning.name, name);
            assert!(!tuning.purpose.is_empty());
        }
    }

    #[test]
    fn what_is_left_out_has_its_default() {
        let tuning = parsed("name = \"x\"\n[batch]\nlinger_us = 7\n[placement]\ncores = [2, 0]").unwrap();
        let mut expected = Tuning { name: "x".to_owned(), ..Tuning::default() };
        expected.batch.linger_us = 7;
        expected.placement.cores = vec![2, 0];
        assert_eq!(tuning, expected);
        assert_eq!(parsed("").unwrap(), Tuning::default());
    }

    #[test]
    fn wrong_values_name_the_knob_and_what_would_be_right() {
        #[rustfmt::skip]
        let table = [
            ("name = \" \"", "name: is empty"),
            ("[batch]\nlinger = 1", "line 2 (`linger = 1`): unknown field `linger`, expected one of `linger_us`"),
            ("[batch]\nlinger = 1", "did you mean `linger_us`?"),
            ("[bach]\nlinger_us = 1", "did you mean `batch`?"),
            ("[batch]\nlinger_us = -1", "line 2 (`linger_us = -1`): invalid value: integer `-1`, expected u64"),
            ("[batch]\nlinger_us = 1000001", "batch.linger_us: 1000001 must be from 0 to 1000000"),
            ("[batch]\nentries_max = 0", "batch.entries_max: 0 must be from 1 to 65535"),
            ("[batch]\nbytes_max = 16777216", "batch.bytes_max: 16777216 must be from 1024 to 8388608"),
            ("[flow]\nstream_inflight_bytes_max = 4096", "batch.bytes_max: 262144 must be at most flow.stream_inflight_bytes_max, which is 4096"),
            ("[flow]\nlink_queue_bytes_max = 200000", "batch.bytes_max: 262144 must be at most flow.link_queue_bytes_max, which is 200000"),
            ("[flow]\nclient_connections_max = 0", "flow.client_connections_max: 0 must be from 1 to 1048576"),
            ("[flow]\nclient_memory_bytes_max = 1000", "flow.client_memory_bytes_max: 1000 must be from 16777216 to"),
            ("[flow]\nclient_queue_bytes_max = 500000000", "flow.client_queue_bytes_max: 500000000 must be at most flow.client_memory_bytes_max, which is 268435456"),
            ("[timers]\nclient_frame_timeout_us = 0", "timers.client_frame_timeout_us: 0 must be from 1 to 3600000000"),
            ("[flow]\nclient_requests_max = 0", "flow.client_requests_max: 0 must be from 1 to"),
            ("[timers]\nheartbeat_us = 600000", "timers.heartbeat_us: 2 times 600000 must be at most timers.suspect_silent_us, which is 1000000"),
            ("[timers]\nbackoff_min_us = 600000", "timers.backoff_min_us: 600000 must be at most timers.backoff_max_us, which is 500000"),
            ("[timers]\nreconnect_max_us = 1", "timers.reconnect_min_us: 20000 must be at most timers.reconnect_max_us, which is 1"),
            ("[timers]\nrequest_timeout_us = 150000", "timers.prepare_retry_us: 2 times 100000 must be at most timers.request_timeout_us, which is 150000"),
            ("[timers]\ntick_us = 20001", "timers.tick_us: 20001 must be from 100 to 20000"),
            ("[timers]\ngap_delay_us = 0", "timers.gap_delay_us: 0 must be from 1 to 3600000000"),
            ("[sockets]\nsend_buffer_bytes = 100", "sockets.send_buffer_bytes: 100 must be 0, which leaves it to the kernel, or from 4096 to 1073741824"),
            ("[sockets]\nread_bytes = 0", "sockets.read_bytes: 0 must be from 4096 to 16777216"),
            ("[log]\ngroup_bytes_max = 4096\nsegment_bytes = 65537", "log.segment_bytes: 65537 must be a multiple of 4096, as in 69632"),
            ("[log]\nsegment_bytes = 65536", "log.group_bytes_max: 1048576 must be at most log.segment_bytes, which is 65536"),
            ("[log]\ncheckpoint_log_bytes = 65536", "log.segment_bytes: 16777216 must be at most log.checkpoint_log_bytes, which is 65536"),
            ("[log]\nsync_interval_us = 1", "log.sync_interval_us: 1 must be from 1000 to"),
            ("[placement]\nring_depth = 100", "placement.ring_depth: 100 must be a power of two, as in 128"),
            ("[placement]\nio_memory_bytes = 4096", "placement.io_memory_bytes: 4096 must be from 65536 to"),
            ("[placement]\ncores = [1, 0, 1]", "placement.cores: core 1 is listed twice"),
        ];
        for (text, message) in table {
            let error = parsed(text).expect_err(text).to_string();
            assert!(error.starts_with("t.toml: "), "{error:?} does not name the file");
            assert!(error.contains(message), "{error:?} does not say {message:?}");
        }
    }

    #[test]
    fn the_kernel_may_choose_the_buffers() {
        let tuning = parsed("[sockets]\nsend_buffer_bytes = 0\nreceive_buffer_bytes = 0").unwrap();
        assert_eq!(tuning.sockets.send_buffer_bytes, 0);
    }
}
