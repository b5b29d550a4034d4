//! The `[config]` table of the manifest. Needs the capability `config`.

mod table;

use serde::de::DeserializeOwned;

use crate::host::config::get;

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
    optional(key)?.ok_or_else(|| missing(key))
}

/// The whole table as a struct, one field for each key. Keys that the struct has no field for are not
/// seen: the host gives values by key, so refusing them is the schema's business.
///
/// ```
/// #[derive(serde::Deserialize)]
/// #[serde(default)]
/// struct Config {
///     max_tags: usize,
///     exempt: Vec<String>,
/// }
///
/// impl Default for Config {
///     fn default() -> Self {
///         Self { max_tags: 10, exempt: Vec::new() }
///     }
/// }
///
/// # nostr_gateway_plugin::testing::Gateway::new().with_config("max_tags", 3).run(|| {
/// let config: Config = nostr_gateway_plugin::config::all()?;
/// # assert_eq!(config.max_tags, 3);
/// # Ok::<(), String>(())
/// # }).unwrap();
/// ```
///
/// # Errors
/// When a value does not have the type of its field, or one without a default is absent. The text
/// names the key.
pub fn all<T: DeserializeOwned>() -> Result<T, String> {
    T::deserialize(table::Table).map_err(|error| error.0)
}

fn missing(key: &str) -> String {
    format!("config.{key} is missing")
}

fn parse<T: DeserializeOwned>(key: &str, json: &str) -> Result<T, String> {
    serde_json::from_str(json).map_err(|error| wrong(key, &error))
}

fn wrong(key: &str, error: &serde_json::Error) -> String {
    let text = error.to_string();
    // The position is one in our JSON text; the operator wrote TOML.
    let text = text.find(" at line ").map_or(text.as_str(), |end| &text[..end]);
    format!("config.{key}: {text}")
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;
    use crate::testing::Gateway;

    #[test]
    fn a_wrong_type_names_the_key() {
        assert_eq!(parse::<Vec<String>>("words", r#"["a"]"#), Ok(vec!["a".to_owned()]));
        assert_eq!(
            parse::<Vec<String>>("words", "3"),
            Err("config.words: invalid type: integer `3`, expected a sequence".to_owned())
        );
    }

    #[derive(Debug, PartialEq, Deserialize)]
    struct Whole {
        max: u8,
        #[serde(default, rename = "of-whom")]
        whom: Vec<String>,
        note: Option<String>,
    }

    #[test]
    fn the_whole_table_becomes_a_struct() {
        let gateway = Gateway::new().with_config("max", 3).with_config("other", true);
        let whole = Whole { max: 3, whom: Vec::new(), note: None };
        assert_eq!(gateway.run(all::<Whole>), Ok(whole));
        let gateway = gateway.with_config("of-whom", ["a"]).with_config("note", "n");
        let whole = Whole { max: 3, whom: vec!["a".to_owned()], note: Some("n".to_owned()) };
        assert_eq!(gateway.run(all::<Whole>), Ok(whole));
        let gateway = gateway.with_config("of-whom", ["a", "b"]).with_config("max", 300);
        assert_eq!(
            gateway.run(all::<Whole>),
            Err("config.max: invalid value: integer `300`, expected u8".to_owned())
        );
        assert_eq!(Gateway::new().run(all::<Whole>), Err("config.max is missing".to_owned()));
        let error = gateway.run(all::<Vec<u8>>).unwrap_err();
        assert!(error.contains("a struct with named fields"), "{error}");
    }
}
