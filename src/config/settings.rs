//! The tables of the cluster file that say how its replicas serve HTTP, whether faults may be injected, and what is kept
//! of earlier values.

use serde::Deserialize;

use super::{
    FieldError,
    cluster::{check_choice, decimal, integer},
};
use crate::topology::{HistoryBounds, HttpSettings, Missing};

/// What `http.missing` may be.
const MISSING: &[(&str, &[&str])] = &[("404", &[]), ("empty", &[])];
/// A day, in microseconds: nobody means longer.
const TIMEOUT_US_MAX: u64 = 86_400_000_000;

#[derive(Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
pub(super) struct HttpFile {
    missing: Option<String>,
    body_bytes_max: Option<i64>,
    idle_timeout_ms: Option<f64>,
    request_timeout_ms: Option<f64>,
    connections_max: Option<i64>,
}

impl HttpFile {
    pub(super) fn check(&self) -> Result<HttpSettings, FieldError> {
        let default = HttpSettings::default();
        let missing = self.missing.as_deref().unwrap_or(default.missing.name());
        check_choice("http", "missing", missing, MISSING, &[])?;
        let (idle, request) = (default.idle_timeout_us, default.request_timeout_us);
        // A value of the longest length in Base64, in JSON, still fits.
        let body_bytes_max = count("http.body_bytes_max", self.body_bytes_max, default.body_bytes_max, 1, 16 << 20)?;
        Ok(HttpSettings {
            missing: if missing == "empty" { Missing::Empty } else { Missing::NotFound },
            body_bytes_max,
            idle_timeout_us: decimal("http.idle_timeout_ms", self.idle_timeout_ms, idle, 1000, TIMEOUT_US_MAX)?,
            request_timeout_us: decimal(
                "http.request_timeout_ms",
                self.request_timeout_ms,
                request,
                1000,
                TIMEOUT_US_MAX,
            )?,
            connections_max: count("http.connections_max", self.connections_max, default.connections_max, 1, 1 << 20)?,
        })
    }
}

#[derive(Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
pub(super) struct FaultsFile {
    pub(super) allowed: bool,
}

#[derive(Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
pub(super) struct HistoryFile {
    enabled: bool,
    versions_per_key: Option<i64>,
    bytes_max: Option<i64>,
}

impl HistoryFile {
    pub(super) fn check(&self) -> Result<Option<HistoryBounds>, FieldError> {
        let default = HistoryBounds::default();
        let versions = default.versions_per_key;
        let bounds = HistoryBounds {
            versions_per_key: count("history.versions_per_key", self.versions_per_key, versions, 1, u32::MAX.into())?,
            bytes_max: count("history.bytes_max", self.bytes_max, default.bytes_max, 4096, 1 << 40)?,
        };
        Ok(self.enabled.then_some(bounds))
    }
}

fn count(field: &str, value: Option<i64>, default: usize, min: i64, max: i64) -> Result<usize, FieldError> {
    value.map_or(Ok(default), |value| Ok(integer(field, value, min, max)? as usize))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::topology::Cluster;

    fn with(settings: &str) -> Result<Cluster, String> {
        let node = "[[node]]\nid = \"1.1\"\naddress = \"127.0.0.1:7101\"\nhttp = \"127.0.0.1:8101\"\n";
        let text = format!("name = \"demo\"\n{settings}\n{node}");
        Cluster::parse(&text, Path::new("c.toml")).map_err(|error| error.to_string())
    }

    #[test]
    fn settings_have_their_defaults_and_are_read() {
        let cluster = with("").unwrap();
        assert_eq!((cluster.http, cluster.faults, cluster.history), (HttpSettings::default(), false, None));
        assert_eq!(cluster.nodes[0].http, Some("127.0.0.1:8101".parse().unwrap()));
        let text = "[http]\nmissing = \"empty\"\nbody_bytes_max = 100\nidle_timeout_ms = 1.5\nrequest_timeout_ms = 2\n\
                    connections_max = 3\n[faults]\nallowed = true\n[history]\nenabled = true\nversions_per_key = 7\n\
                    bytes_max = 5000";
        let cluster = with(text).unwrap();
        let http = HttpSettings {
            missing: Missing::Empty,
            body_bytes_max: 100,
            idle_timeout_us: 1500,
            request_timeout_us: 2000,
            connections_max: 3,
        };
        let history = HistoryBounds { versions_per_key: 7, bytes_max: 5000 };
        assert_eq!((cluster.http, cluster.faults, cluster.history), (http, true, Some(history)));
        assert_eq!(with("[history]\nversions_per_key = 7").unwrap().history, None, "off unless it is enabled");
        for cluster in [cluster, with("[history]\nenabled = true").unwrap()] {
            assert_eq!(Cluster::parse(&cluster.to_toml(), Path::new("c.toml")).unwrap(), cluster);
        }
    }

    #[test]
    fn wrong_settings_are_named() {
        for (settings, message) in [
            ("[http]\nmissing = \"none\"", "http.missing: 'none' is not known: expected one of 404, empty"),
            ("[http]\nbody_bytes_max = 0", "http.body_bytes_max: 0 must be from 1 to 16777216"),
            ("[http]\nidle_timeout_ms = 0.5", "http.idle_timeout_ms: 0.5 must be from 1 to 86400000"),
            ("[http]\nrequest_timeout_ms = -1", "http.request_timeout_ms: -1 must be from 1 to 86400000"),
            ("[http]\nconnections_max = 0", "http.connections_max: 0 must be from 1 to 1048576"),
            ("[http]\nconnection_max = 1", "did you mean `connections_max`?"),
            ("[faults]\nallow = true", "did you mean `allowed`?"),
            ("[history]\nenabled = 1", "invalid type: integer `1`, expected a boolean"),
            ("[history]\nversions_per_key = 0", "history.versions_per_key: 0 must be from 1 to 4294967295"),
            ("[history]\nbytes_max = 1", "history.bytes_max: 1 must be from 4096 to 1099511627776"),
            (
                "[[node]]\nid = \"1.2\"\naddress = \"127.0.0.1:7102\"\nhttp = \"127.0.0.1:7101\"",
                "node 1.2: http: 127.0.0.1:7101 is taken by node 1.1 shard 0: every listener needs its own port",
            ),
            (
                "[[node]]\nid = \"1.2\"\naddress = \"127.0.0.1:7102\"\nhttp = \"127.0.0.1:8101\"",
                "node 1.2: http: 127.0.0.1:8101 is taken by node 1.1 http",
            ),
            (
                "[[node]]\nid = \"1.2\"\naddress = \"127.0.0.1:7102\"\nhttp = \"localhost:80\"",
                "node 1.2: http: 'localhost:80' is not an address: expected IP:PORT",
            ),
        ] {
            let error = with(settings).expect_err(settings);
            assert!(error.contains(message), "{error:?} does not say {message:?}");
        }
    }
}
