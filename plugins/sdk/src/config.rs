//! The `[config]` table of the manifest. Needs the capability `config`.

use serde::de::DeserializeOwned;

use crate::bindings::nostr_gateway::plugin::config::get;

/// The value under a top-level key; `None` when the operator did not set it.
///
/// # Errors
/// When the value does not have the wanted type. The text names the key, ready to be returned from
/// [`crate::EventFilter::init`].
pub fn optional<T: DeserializeOwned>(key: &str) -> Result<Option<T>, String> {
    get(key).map(|json| parse(key, &json)).transpose()
}

/// The same for a key that must be set.
///
/// # Errors
/// Also when the key is absent.
pub fn required<T: DeserializeOwned>(key: &str) -> Result<T, String> {
    optional(key)?.ok_or_else(|| format!("config.{key} is missing"))
}

fn parse<T: DeserializeOwned>(key: &str, json: &str) -> Result<T, String> {
    serde_json::from_str(json).map_err(|error| {
        let text = error.to_string();
        // The position is one in our JSON text; the operator wrote TOML.
        let text = text.find(" at line ").map_or(text.as_str(), |end| &text[..end]);
        format!("config.{key}: {text}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_type_names_the_key() {
        assert_eq!(parse::<Vec<String>>("words", r#"["a"]"#), Ok(vec!["a".to_owned()]));
        assert_eq!(
            parse::<Vec<String>>("words", "3"),
            Err("config.words: invalid type: integer `3`, expected a sequence".to_owned())
        );
    }
}
