//! What a native test uses of `plugin.toml`. Whether the rest of it is right, the gateway tells.

use std::{collections::BTreeMap, fs, path::Path};

use serde::Deserialize;

use super::host::State;

#[derive(Deserialize)]
pub struct Manifest {
    #[serde(default)]
    capabilities: Vec<String>,
    #[serde(default)]
    optional_capabilities: Vec<String>,
    #[serde(default)]
    limits: Limits,
    #[serde(default)]
    config: BTreeMap<String, toml::Value>,
}

#[derive(Default, Deserialize)]
struct Limits {
    kv_bytes: Option<u64>,
    kv_keys: Option<u64>,
}

pub fn read(path: &Path) -> Result<Manifest, String> {
    let text = fs::read_to_string(path).map_err(|error| error.to_string())?;
    toml::from_str(&text).map_err(|error| error.to_string())
}

impl Manifest {
    pub fn apply(self, state: &mut State) {
        let json = |(key, value)| (key, json(value).to_string());
        state.config = self.config.into_iter().map(json).collect();
        let listed = self.capabilities.into_iter().chain(self.optional_capabilities);
        state.capabilities = Some(listed.collect());
        let memory = &mut state.memory;
        memory.max_bytes = self.limits.kv_bytes.unwrap_or(memory.max_bytes);
        memory.max_keys = self.limits.kv_keys.unwrap_or(memory.max_keys);
    }
}

/// As the host hands it to plugins: dates are texts.
fn json(value: toml::Value) -> serde_json::Value {
    match value {
        toml::Value::String(text) => text.into(),
        toml::Value::Integer(number) => number.into(),
        toml::Value::Float(number) => number.into(),
        toml::Value::Boolean(truth) => truth.into(),
        toml::Value::Datetime(date) => date.to_string().into(),
        toml::Value::Array(items) => items.into_iter().map(json).collect(),
        toml::Value::Table(table) => table.into_iter().map(|(key, v)| (key, json(v))).collect(),
    }
}
