//! The state file: the configuration that was handed out, so that a master that starts again hands out the same.
//!
//! It is written once, before anybody is told, and whole: into a file beside it that then takes its name. Who has
//! registered before the cluster is complete is not in it, because those who wait register anew by themselves.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{StateError, registry::Settings};
use crate::{config::ConfigError, topology::Cluster, tuning::Tuning};

const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Contents {
    version: u32,
    /// What it was made from: a master with other settings must not go on from it.
    n: usize,
    template: String,
    tuning: String,
    /// What was handed out.
    cluster: String,
}

/// Where the state is kept.
#[derive(Clone, Debug)]
pub(super) struct StateFile(PathBuf);

impl StateFile {
    pub(super) fn new(file: &Path) -> Self {
        Self(file.to_owned())
    }

    fn failed(&self, what: &'static str) -> impl Fn(io::Error) -> StateError {
        let file = self.0.display().to_string();
        move |source| StateError::File { file: file.clone(), what, source }
    }

    /// What is in it, if it is there and was made with these settings.
    pub(super) fn load(&self, settings: &Settings) -> Result<Option<Cluster>, StateError> {
        let text = match fs::read_to_string(&self.0) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(self.failed("read"))?,
        };
        let wrong = |problem: String| StateError::Contents { file: self.0.display().to_string(), problem };
        let contents: Contents =
            serde_json::from_str(&text).map_err(|error| wrong(format!("is not the state of a master: {error}")))?;
        if contents.version != VERSION {
            return Err(wrong(format!("has version {}, and we know {VERSION}", contents.version)));
        }
        if contents.n != settings.n {
            return Err(wrong(format!("is of a cluster of {} and not of {}", contents.n, settings.n)));
        }
        for (what, before, now) in [
            ("template", &contents.template, settings.template.text()),
            ("tuning", &contents.tuning, settings.tuning_text.as_str()),
        ] {
            if before != now {
                return Err(wrong(format!("is of a cluster with another {what}")));
            }
        }
        let parsed = |error: ConfigError| wrong(error.to_string());
        Tuning::parse(&contents.tuning, Path::new("its tuning")).map_err(parsed)?;
        Cluster::parse(&contents.cluster, Path::new("its cluster")).map_err(parsed).map(Some)
    }

    /// Takes away what is in it.
    pub(super) fn clear(&self) -> Result<(), StateError> {
        match fs::remove_file(&self.0) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(self.failed("removed")(error)),
            _ => Ok(()),
        }
    }

    /// That it can be written, before anybody depends on it.
    pub(super) fn check(&self) -> Result<(), StateError> {
        let beside = self.beside();
        File::create(&beside).map_err(self.failed("written"))?;
        fs::remove_file(&beside).map_err(self.failed("written"))
    }

    pub(super) fn save(&self, settings: &Settings, cluster: &str) -> Result<(), StateError> {
        let contents = Contents {
            version: VERSION,
            n: settings.n,
            template: settings.template.text().to_owned(),
            tuning: settings.tuning_text.clone(),
            cluster: cluster.to_owned(),
        };
        self.write(&contents).map_err(self.failed("written"))
    }

    fn write(&self, contents: &Contents) -> io::Result<()> {
        let beside = self.beside();
        let mut file = File::create(&beside)?;
        file.write_all(&serde_json::to_vec_pretty(contents)?)?;
        file.sync_all()?;
        fs::rename(&beside, &self.0)?;
        let directory = self.0.parent().filter(|parent| !parent.as_os_str().is_empty());
        File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
    }

    fn beside(&self) -> PathBuf {
        let mut name = self.0.clone().into_os_string();
        name.push(".new");
        name.into()
    }
}
