//! Reading the fields of an answer. One that is missing is shown as a dash: the gateway may be of
//! another version.

use serde_json::Value;

pub(super) fn text(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

pub(super) fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_default()
}

pub(super) fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

/// The texts of a list in one line; a dash when there is none.
pub(super) fn joined(value: &Value) -> String {
    match list(value) {
        [] => "-".to_owned(),
        texts => texts.iter().map(text).collect::<Vec<_>>().join(", "),
    }
}
