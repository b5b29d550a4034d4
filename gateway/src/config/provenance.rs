//! Who set a value.

use std::{collections::BTreeMap, fmt};

use figment::{
    Figment,
    value::{Dict, Value},
};

use super::{
    errors::{ConfigError, Problem},
    file::{File, ancestors},
    keys,
};

/// Kinds of layers, as they stand in figment's metadata. The built-in default has none.
pub(super) const FILE: &str = "file";
pub(super) const ENVIRONMENT: &str = "environment";
pub(super) const FLAG: &str = "flag";
pub(super) const FOLLOWS: &str = "follows";

/// Who set a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SetBy {
    /// Nobody: the built-in default.
    Default,
    File {
        path: String,
        line: usize,
    },
    /// The variable of this name.
    Environment(String),
    /// The flag of this name, with its hyphens.
    Flag(String),
    /// Nobody, and it takes after the key of this name.
    Follows(String),
}

impl fmt::Display for SetBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { path, line } => write!(f, "{path}:{line}"),
            Self::Environment(name) => write!(f, "environment {name}"),
            Self::Flag(name) => write!(f, "flag {name}"),
            Self::Follows(key) => write!(f, "follows {key}"),
        }
    }
}

/// Who set which value.
#[derive(Debug, Clone, Default)]
pub struct Provenance(BTreeMap<String, SetBy>);

impl Provenance {
    /// Who set the value of the key, written as in `relay.listen` or `upstream[0].urls`.
    pub fn of(&self, key: &str) -> &SetBy {
        self.0.get(key).unwrap_or(&SetBy::Default)
    }

    pub(super) fn collect(figment: &Figment, tree: &Dict, file: Option<&File>) -> Self {
        let mut all = Self::default();
        for (name, value) in tree {
            match value {
                // A section is not set by anyone, its keys are.
                Value::Dict(_, table) if keys::section(name).is_some_and(|s| !s.list) => {
                    for (key, value) in table {
                        all.walk(format!("{name}.{key}"), value, figment, file);
                    }
                }
                _ => all.walk(name.clone(), value, figment, file),
            }
        }
        all
    }

    fn walk(&mut self, key: String, value: &Value, figment: &Figment, file: Option<&File>) {
        match value {
            Value::Dict(_, table) => {
                for (name, value) in table {
                    self.walk(format!("{key}.{name}"), value, figment, file);
                }
            }
            Value::Array(_, list) => {
                for (index, value) in list.iter().enumerate() {
                    self.walk(format!("{key}[{index}]"), value, figment, file);
                }
            }
            _ => {}
        }
        let metadata = figment.get_metadata(value.tag());
        let source = metadata.and_then(|from| from.source.as_ref()?.custom());
        let (Some(metadata), Some(source)) = (metadata, source) else { return };
        let source = source.to_owned();
        let set_by = match &*metadata.name {
            FILE => SetBy::File { path: source, line: file.map_or(0, |file| file.line(&key)) },
            ENVIRONMENT => SetBy::Environment(source),
            FLAG => SetBy::Flag(source),
            FOLLOWS => SetBy::Follows(source),
            _ => return,
        };
        self.0.insert(key, set_by);
    }

    /// The problem with the place where it can be put right: the first of the keys in it, or of
    /// those around them, that somebody set.
    pub(super) fn locate(&self, problem: &Problem) -> ConfigError {
        let set_by = problem.involved().flat_map(ancestors).find_map(|key| self.0.get(key));
        let (place, line) = match set_by {
            Some(SetBy::File { path, line }) => (path.clone(), *line),
            Some(SetBy::Environment(name) | SetBy::Flag(name)) => (name.clone(), 0),
            Some(SetBy::Follows(_) | SetBy::Default) | None => ("configuration".to_owned(), 0),
        };
        ConfigError { place, line, message: problem.to_string() }
    }
}
