//! The configuration: built-in default, then a file, then the environment, then flags. Each part
//! has its own structure beside its code; here they are put together, read and checked.

mod check;
mod differences;
mod errors;
mod file;
mod keys;
mod layers;
mod provenance;
mod show;
#[cfg(test)]
mod tests;
mod validate;
mod values;

use std::{ffi::OsString, path::PathBuf};

use figment::{Profile, Provider};
use serde::{Deserialize, Serialize};

pub use self::{
    differences::needing_restart,
    errors::{ConfigError, ConfigErrors, Problem},
    provenance::{Provenance, SetBy},
    show::show,
};
use crate::{
    admin::config::AdminConfig,
    gossip::config::{DiscoveryConfig, EndpointConfig, SyncConfig},
    pipeline::config::{LimitsConfig, PrivateTopicConfig, RouteConfig, TopicsConfig},
    plugins::config::PluginsConfig,
    relay::config::{AccessConfig, RatesConfig, RelayConfig},
    secrets::config::SecretsConfig,
    store::config::{RetentionConfig, StorageConfig},
    upstream::config::UpstreamConfig,
};

/// The annotated default, as shipped.
pub const DEFAULT_TOML: &str = include_str!("../../../config/default.toml");

/// The name of the directories of the gateway among those of the user, and of the file in it.
const DIRECTORY: &str = "nostr-gateway";
const FILE: &str = "config.toml";

/// The whole configuration. What each key means stands in `config/default.toml`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    pub relay: RelayConfig,
    pub access: AccessConfig,
    pub rates: RatesConfig,
    pub admin: AdminConfig,
    pub endpoint: EndpointConfig,
    pub discovery: DiscoveryConfig,
    pub sync: SyncConfig,
    pub limits: LimitsConfig,
    pub topics: TopicsConfig,
    pub plugins: PluginsConfig,
    pub secrets: SecretsConfig,
    pub storage: StorageConfig,
    /// `[[retention]]`, in the order of the file.
    pub retention: Vec<RetentionConfig>,
    /// `[[route]]`, in the order of the file.
    pub route: Vec<RouteConfig>,
    /// `[[private_topic]]`, in the order of the file.
    pub private_topic: Vec<PrivateTopicConfig>,
    /// `[[upstream]]`, in the order of the file, those of flags last.
    pub upstream: Vec<UpstreamConfig>,
}

/// Flags that set a value for one run. They are texts, so that a wrong one is answered like a wrong
/// line of the file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Flags {
    /// `--listen`: `relay.listen`.
    pub listen: Option<String>,
    /// `--admin`: `admin.listen`.
    pub admin: Option<String>,
    /// `--topic`: `topics.join`, unless empty.
    pub topics: Vec<String>,
    /// `--upstream`: one more `[[upstream]]` each.
    pub upstreams: Vec<String>,
}

/// Where the configuration comes from. The default is nothing but the built-in configuration.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// `--config`: the file, which must exist.
    pub file: Option<PathBuf>,
    /// `--data-dir`.
    pub data_dir: Option<PathBuf>,
    pub flags: Flags,
    /// All variables of the environment; others than `NOSTR_GATEWAY_*` are passed over.
    pub environment: Vec<(OsString, OsString)>,
    /// The file to read when none is named. It may be absent.
    pub standard_file: Option<PathBuf>,
    /// The data directory when none is named.
    pub standard_data_dir: Option<PathBuf>,
}

impl Sources {
    /// With the environment of this process and the directories of its user.
    pub fn of_process(file: Option<PathBuf>, data_dir: Option<PathBuf>, flags: Flags) -> Self {
        let user = directories::ProjectDirs::from("", "", DIRECTORY);
        Self {
            file,
            data_dir,
            flags,
            environment: std::env::vars_os().collect(),
            standard_file: user.as_ref().map(|user| user.config_dir().join(FILE)),
            standard_data_dir: user.as_ref().map(|user| user.data_dir().to_owned()),
        }
    }

    /// The file to read. Only one that was named must exist.
    pub fn path(&self) -> Option<PathBuf> {
        self.named_file().or_else(|| self.standard_file.clone())
    }

    fn named_file(&self) -> Option<PathBuf> {
        let variable = || layers::path_variable(&self.environment, layers::CONFIG_VARIABLE);
        self.file.clone().or_else(variable)
    }
}

/// A configuration that is in order, and where it came from.
#[derive(Debug, Clone)]
pub struct Loaded {
    pub config: Config,
    /// Where database, keys and sockets are. It need not exist yet.
    pub data_dir: PathBuf,
    pub data_dir_set_by: SetBy,
    /// The file that was read.
    pub file: Option<PathBuf>,
    pub provenance: Provenance,
}

/// Reads and checks the configuration.
///
/// # Errors
/// Everything that is wrong with it, at once. A file that cannot be read or is no TOML stands alone.
pub fn load(sources: &Sources) -> Result<Loaded, ConfigErrors> {
    let file = match sources.path() {
        Some(path) => file::File::read(&path, sources.named_file().is_none())?,
        None => None,
    };

    let mut errors = Vec::new();
    let figment = layers::merge(file.as_ref(), &sources.environment, &sources.flags, &mut errors);
    // The tree itself and not what extract() makes of it: only here the values have their tags.
    let tree = match figment.data() {
        Ok(mut profiles) => profiles.remove(&Profile::Default).unwrap_or_default(),
        Err(error) => return Err(ConfigError::new("configuration", error.to_string()).into()),
    };
    let provenance = Provenance::collect(&figment, &tree, file.as_ref());
    let (config, problems) = check::read(&tree);
    errors.extend(problems.iter().map(|problem| provenance.locate(problem)));

    let data_dir = data_dir(sources);
    match data_dir {
        Ok((data_dir, data_dir_set_by)) if errors.is_empty() => {
            let file = file.map(|file| file.path);
            Ok(Loaded { config, data_dir, data_dir_set_by, file, provenance })
        }
        data_dir => {
            errors.extend(data_dir.err());
            errors.sort();
            Err(ConfigErrors(errors))
        }
    }
}

/// The data directory, and who set it. It need not exist.
///
/// # Errors
/// When nobody named one and this user has no home directory.
pub fn data_dir(sources: &Sources) -> Result<(PathBuf, SetBy), ConfigError> {
    if let Some(path) = &sources.data_dir {
        return Ok((path.clone(), SetBy::Flag("--data-dir".to_owned())));
    }
    let variable = layers::DATA_DIR_VARIABLE;
    if let Some(path) = layers::path_variable(&sources.environment, variable) {
        return Ok((path, SetBy::Environment(variable.to_owned())));
    }
    let standard = sources.standard_data_dir.clone().map(|path| (path, SetBy::Default));
    standard.ok_or_else(|| {
        let text =
            "this user has no home directory, so there is no default data directory; give one";
        ConfigError::new("--data-dir", text)
    })
}
