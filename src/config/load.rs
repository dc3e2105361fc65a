//! Which kind of file it is, and what belongs together: a cluster and its tuning, a cluster whose nodes are still to come.

use std::{
    fmt::Write as _,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use super::{
    ConfigError,
    paxi::{Note, PaxiConfig},
    read,
};
use crate::{
    topology::{Cluster, NodeId},
    tuning::Tuning,
};

impl Cluster {
    /// Reads and checks a cluster file: our TOML, or Paxi's JSON, of which [`Configuration::load`] says what was noticed.
    ///
    /// # Errors
    /// If the file, or a matrix of distances that it names, cannot be read or is not right, with the field.
    pub fn load(file: impl AsRef<Path>) -> Result<Self, ConfigError> {
        let file = file.as_ref();
        Self::parse(&read(file)?, file)
    }

    /// The same for the text of a cluster file. `file` is for messages, and what it names is looked for beside it.
    ///
    /// # Errors
    /// As [`Cluster::load`].
    pub fn parse(text: &str, file: &Path) -> Result<Self, ConfigError> {
        if PaxiConfig::recognises(text, file) {
            return PaxiConfig::parse(text, file).map(|paxi| paxi.to_cluster().0);
        }
        Self::parse_toml(text, file)
    }
}

/// A cluster file, ours or Paxi's, as a complete cluster file of ours, and what to know about how it was understood.
///
/// # Errors
/// As [`Cluster::load`].
pub fn convert(file: &Path) -> Result<(String, Vec<Note>), ConfigError> {
    let text = read(file)?;
    if PaxiConfig::recognises(&text, file) {
        return PaxiConfig::parse(&text, file).map(|paxi| (paxi.to_toml(), paxi.notes().to_vec()));
    }
    Cluster::parse_toml(&text, file).map(|cluster| (cluster.to_toml(), Vec::new()))
}

/// What a replica is configured by.
#[derive(Clone, Debug)]
pub struct Configuration {
    /// The cluster.
    pub cluster: Cluster,
    /// The knobs.
    pub tuning: Tuning,
    /// What to know about how the files were understood.
    pub notes: Vec<Note>,
}

impl Configuration {
    /// Reads a cluster file, ours or Paxi's, and a tuning file. Without one the tuning is the default one, as a Paxi file
    /// changes it.
    ///
    /// # Errors
    /// As [`Cluster::load`] and [`Tuning::load`].
    pub fn load(cluster: &Path, tuning: Option<&Path>) -> Result<Self, ConfigError> {
        let text = read(cluster)?;
        let named = tuning.map(Tuning::load).transpose()?;
        if !PaxiConfig::recognises(&text, cluster) {
            let cluster = Cluster::parse_toml(&text, cluster)?;
            return Ok(Self { cluster, tuning: named.unwrap_or_default(), notes: Vec::new() });
        }
        let paxi = PaxiConfig::parse(&text, cluster)?;
        let (cluster, mut notes) = paxi.to_cluster();
        if let Some(tuning) = named.as_ref().filter(|tuning| tuning.batch.thrifty != paxi.thrifty) {
            notes.push(Note {
                field: "thrifty".to_owned(),
                text: format!(
                    "is ignored: the tuning file '{}' says batch.thrifty = {}",
                    tuning.name, tuning.batch.thrifty
                ),
            });
        }
        Ok(Self { cluster, tuning: named.unwrap_or_else(|| paxi.to_tuning()), notes })
    }
}

/// A cluster whose nodes are still to come: everything that is the same whoever they are.
#[derive(Clone, Debug)]
pub struct Template {
    text: String,
    file: PathBuf,
    shards: u16,
    tuning: Tuning,
    notes: Vec<Note>,
}

impl Default for Template {
    /// A cluster file at its defaults, named `wpaxos`.
    fn default() -> Self {
        Self {
            text: "name = \"wpaxos\"\n".to_owned(),
            file: PathBuf::from("the default template"),
            shards: 1,
            tuning: Tuning::default(),
            notes: Vec::new(),
        }
    }
}

impl Template {
    /// Reads a cluster file without nodes, or Paxi's JSON, whose addresses are ignored. What depends on the nodes is checked
    /// when they are there.
    ///
    /// # Errors
    /// If the file cannot be read or is not right, with the field.
    pub fn load(file: impl AsRef<Path>) -> Result<Self, ConfigError> {
        let file = file.as_ref();
        Self::parse(read(file)?, file)
    }

    /// The same for the text of a file. `file` is for messages, and what it names is looked for beside it.
    ///
    /// # Errors
    /// As [`Template::load`].
    pub fn parse(text: String, file: &Path) -> Result<Self, ConfigError> {
        let (mut tuning, mut notes, mut text) = (Tuning::default(), Vec::new(), text);
        if PaxiConfig::recognises(&text, file) {
            let paxi = PaxiConfig::parse_template(&text, file)?;
            tuning = paxi.to_tuning();
            notes = paxi.notes().to_vec();
            text = paxi.settings_toml().to_owned();
        }
        let shards = Cluster::check_template(&text, file)?;
        Ok(Self { text, file: file.to_owned(), shards, tuning, notes })
    }

    /// The cluster of these nodes: the id of each, where its first shard listens, and where it serves HTTP.
    ///
    /// # Errors
    /// If they do not go together with the template, or with each other.
    pub fn with_nodes(&self, nodes: &[(NodeId, SocketAddr, Option<SocketAddr>)]) -> Result<Cluster, ConfigError> {
        let mut text = self.text.clone();
        for (id, address, http) in nodes {
            let _ = write!(text, "\n[[node]]\nid = \"{id}\"\naddress = \"{address}\"\n");
            if let Some(http) = http {
                let _ = writeln!(text, "http = \"{http}\"");
            }
        }
        Cluster::parse_toml(&text, &self.file)
    }

    /// The cluster file without its nodes.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Shards of each node.
    pub fn shards(&self) -> u16 {
        self.shards
    }

    /// The tuning that goes with it if no other is named.
    pub fn tuning(&self) -> &Tuning {
        &self.tuning
    }

    /// What to know about how the file was understood.
    pub fn notes(&self) -> &[Note] {
        &self.notes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_paxi_file_brings_its_tuning_unless_a_tuning_file_says_otherwise() {
        let directory = tempfile::tempdir().unwrap();
        let (paxi, tuning) = (directory.path().join("config.json"), directory.path().join("tuning.toml"));
        std::fs::write(&paxi, r#"{"address": {"1.1": "10.0.0.1:1"}, "thrifty": true}"#).unwrap();
        std::fs::write(&tuning, "name = \"mine\"").unwrap();
        let alone = Configuration::load(&paxi, None).unwrap();
        assert!(alone.tuning.batch.thrifty && !alone.notes.is_empty());
        let both = Configuration::load(&paxi, Some(&tuning)).unwrap();
        assert_eq!((both.tuning.name.as_str(), both.tuning.batch.thrifty), ("mine", false));
        assert!(both.notes.iter().any(|note| note.text.contains("the tuning file 'mine' says batch.thrifty = false")));
    }

    #[test]
    fn nodes_are_put_into_a_template() {
        let template = Template::parse("name = \"t\"\nshards = 2".to_owned(), Path::new("t.toml")).unwrap();
        let node = |zone| (NodeId::new(zone, 1), SocketAddr::from(([10, 0, 0, zone], 7000)), None);
        let http = SocketAddr::from(([10, 0, 0, 1], 80));
        let cluster = template.with_nodes(&[(node(1).0, node(1).1, Some(http)), node(2)]).unwrap();
        assert_eq!((cluster.name.as_str(), cluster.shards, cluster.zones.len()), ("t", 2, 2));
        assert_eq!((cluster.nodes[0].http, cluster.nodes[1].http), (Some(http), None));
        assert_eq!(Template::default().with_nodes(&[node(1)]).unwrap().name, "wpaxos");

        let strict = "name = \"t\"\n[quorum]\nnode_failures = 1".to_owned();
        let strict = Template::parse(strict, Path::new("t.toml")).unwrap();
        let error = strict.with_nodes(&[node(1)]).unwrap_err().to_string();
        assert!(error.starts_with("t.toml: quorum.node_failures"), "{error}");
    }

    #[test]
    fn templates_are_checked_as_far_as_can_be() {
        for (text, message) in [
            ("shards = 2", "missing field `name`"),
            ("name = \"a\"\nshard = 2", "did you mean `shards`?"),
            ("name = \"a\"\nshards = 0", "shards: 0 must be from 1"),
            ("name = \"a\"\n[steal]\npolicy = \"nonne\"", "did you mean `none`?"),
            ("name = \"a\"\n[http]\nmissing = \"40\"", "http.missing: '40' is not known"),
            ("name = \"a\"\n[[node]]\nid = \"1.1\"", "node: a template has none"),
            ("{\"policy\": \"never\"}", "policy: 'never' is not known"),
        ] {
            let error = Template::parse(text.to_owned(), Path::new("t.toml")).expect_err(text).to_string();
            assert!(error.starts_with("t.toml: ") && error.contains(message), "{error:?} does not say {message:?}");
        }
        assert!(Template::parse("{}".to_owned(), Path::new("t.json")).unwrap().text().contains("name = \"paxi\""));
    }
}
