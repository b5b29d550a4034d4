//! The configuration file: reading it, and on which line each key stands.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
};

use figment::{
    providers::{Format, Toml},
    value::Dict,
};
use toml_edit::{ImDocument, Item, TableLike, Value};

use super::errors::ConfigError;

/// A file that was read and is TOML.
#[derive(Debug, Clone)]
pub(super) struct File {
    pub path: PathBuf,
    pub tree: Dict,
    /// Keys as in `upstream[0].urls` to lines, counted from 1.
    lines: BTreeMap<String, usize>,
}

impl File {
    /// Reads the file. `Ok(None)` when there is none and it is optional.
    pub fn read(path: &Path, optional: bool) -> Result<Option<Self>, ConfigError> {
        let wrong = |message: String| ConfigError::new(path.display().to_string(), message);
        match std::fs::read(path) {
            Ok(bytes) => {
                let text = String::from_utf8(bytes)
                    .map_err(|_| wrong("the configuration file is not UTF-8 text".to_owned()))?;
                Self::parse(path, &text).map(Some)
            }
            Err(error) if optional && error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(wrong(format!("cannot read the configuration file: {error}"))),
        }
    }

    fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let place = || path.display().to_string();
        let document = ImDocument::parse(text).map_err(|error| {
            let (line, column) = position(text, error.span().map_or(0, |span| span.start));
            // The parser says what it found and what it expected on lines of their own.
            let message = error.message().trim().lines().collect::<Vec<_>>().join("; ");
            ConfigError::new(format!("{}:{line}:{column}", place()), format!("not TOML: {message}"))
        })?;
        let mut lines = BTreeMap::new();
        walk_table(document.as_table(), "", text, &mut lines);
        let tree = Toml::from_str::<Dict>(text)
            .map_err(|error| ConfigError::new(place(), format!("not TOML: {}", error.message())))?;
        Ok(Self { path: path.to_owned(), tree, lines })
    }

    /// The line of the key or of the nearest one around it; 0 when there is none.
    pub fn line(&self, key: &str) -> usize {
        ancestors(key).find_map(|key| self.lines.get(key)).copied().unwrap_or(0)
    }
}

/// The key, the one it lies in, and so on.
pub(super) fn ancestors(key: &str) -> impl Iterator<Item = &str> {
    std::iter::successors(Some(key), |key| key.rfind(['.', '[']).map(|end| &key[..end]))
}

fn walk_table(
    table: &dyn TableLike,
    prefix: &str,
    text: &str,
    lines: &mut BTreeMap<String, usize>,
) {
    for (name, item) in table.iter() {
        let path = if prefix.is_empty() { name.to_owned() } else { format!("{prefix}.{name}") };
        // An implicit table ([a.b] without [a]) has no place of its own.
        if let Some(span) = table.key(name).and_then(toml_edit::Key::span).or_else(|| item.span()) {
            lines.insert(path.clone(), position(text, span.start).0);
        }
        match item {
            Item::ArrayOfTables(tables) => {
                for (index, table) in tables.iter().enumerate() {
                    let path = format!("{path}[{index}]");
                    if let Some(span) = table.span() {
                        lines.insert(path.clone(), position(text, span.start).0);
                    }
                    walk_table(table, &path, text, lines);
                }
            }
            Item::Table(table) => walk_table(table, &path, text, lines),
            Item::Value(value) => walk_value(value, &path, text, lines),
            Item::None => {}
        }
    }
}

fn walk_value(value: &Value, path: &str, text: &str, lines: &mut BTreeMap<String, usize>) {
    match value {
        Value::InlineTable(table) => walk_table(table, path, text, lines),
        Value::Array(list) => {
            for (index, element) in list.iter().enumerate() {
                let path = format!("{path}[{index}]");
                if let Some(span) = element.span() {
                    lines.insert(path.clone(), position(text, span.start).0);
                }
                walk_value(element, &path, text, lines);
            }
        }
        _ => {}
    }
}

/// Line and column, counted from 1, of a byte.
fn position(text: &str, offset: usize) -> (usize, usize) {
    let before = &text.as_bytes()[..offset.min(text.len())];
    let line_start = before.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
    let column = String::from_utf8_lossy(&before[line_start..]).chars().count() + 1;
    (line, column)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_and_element_has_its_line() {
        let text = "[topics]\njoin = [\n  \"a\",\n  \"b\",\n]\n\n[[upstream]]\nname = \"x\"\n\n\
                    [[upstream]]\nfilter = { kinds = [1] }\n";
        let file = File::parse(Path::new("c.toml"), text).unwrap();
        for (key, line) in [
            ("topics.join", 2),
            ("topics.join[1]", 4),
            ("topics.join[7]", 2),
            ("upstream[0]", 7),
            ("upstream[0].name", 8),
            ("upstream[0].urls", 7),
            ("upstream[1].filter.kinds[0]", 11),
        ] {
            assert_eq!(file.line(key), line, "{key}");
        }
    }
}
