//! The effective configuration as TOML, each line with who set it.

use std::fmt::Write as _;

use figment::value::{Dict, Value};

use super::{Loaded, check, keys};

/// Comments stand one below the other up to this column; a longer line has its own behind it.
const WIDEST: usize = 56;

/// Prints the configuration so that it reads back as the same.
pub fn show(loaded: &Loaded) -> String {
    let mut lines = Vec::new();
    let tree = check::tree_of(&loaded.config);
    for section in keys::SECTIONS {
        match tree.get(section.name) {
            Some(Value::Dict(_, table)) => {
                lines.push((String::new(), None));
                lines.push((section.header(), None));
                table_lines(loaded, section, section.name, table, &mut lines);
            }
            Some(Value::Array(_, list)) => {
                for (index, table) in list.iter().enumerate() {
                    lines.push((String::new(), None));
                    lines.push((section.header(), None));
                    let path = format!("{}[{index}]", section.name);
                    if let Value::Dict(_, table) = table {
                        table_lines(loaded, section, &path, table, &mut lines);
                    }
                }
            }
            _ => {}
        }
    }

    let widths = lines.iter().filter(|(_, set_by)| set_by.is_some());
    let widths = widths.map(|(line, _)| line.chars().count()).filter(|width| *width <= WIDEST);
    let width = widths.max().unwrap_or(0);
    let mut text = header(loaded);
    for (line, set_by) in &lines {
        let written = match set_by {
            Some(set_by) => writeln!(text, "{line:width$}  # {set_by}"),
            None => writeln!(text, "{line}"),
        };
        written.expect("a String takes everything");
    }
    text
}

fn table_lines(
    loaded: &Loaded,
    section: &keys::Section,
    path: &str,
    table: &Dict,
    lines: &mut Vec<(String, Option<String>)>,
) {
    for key in section.keys {
        if let Some(value) = table.get(key.name) {
            let set_by = loaded.provenance.of(&format!("{path}.{}", key.name));
            let set_by = on_one_line(&set_by.to_string());
            lines.push((format!("{} = {}", key.name, toml(value)), Some(set_by)));
        }
    }
}

fn header(loaded: &Loaded) -> String {
    let file = match &loaded.file {
        Some(path) => path.display().to_string(),
        None => "none".to_owned(),
    };
    let data_dir = format!("{} ({})", loaded.data_dir.display(), loaded.data_dir_set_by);
    format!(
        "# The configuration in effect.\n# file: {}\n# data directory: {}\n",
        on_one_line(&file),
        on_one_line(&data_dir),
    )
}

/// A comment ends with its line, and a path may contain anything.
fn on_one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// A value as TOML, on one line.
fn toml(value: &Value) -> String {
    match value {
        Value::Dict(_, table) if table.is_empty() => "{}".to_owned(),
        Value::Dict(_, table) => {
            let entries =
                table.iter().map(|(key, value)| format!("{} = {}", bare(key), toml(value)));
            format!("{{ {} }}", entries.collect::<Vec<_>>().join(", "))
        }
        Value::Array(_, list) => {
            format!("[{}]", list.iter().map(toml).collect::<Vec<_>>().join(", "))
        }
        Value::String(_, text) => quoted(text),
        Value::Char(_, letter) => quoted(&letter.to_string()),
        Value::Bool(_, on) => on.to_string(),
        Value::Num(..) => match keys::whole(value) {
            Some(number) => number.to_string(),
            None => value.to_f64().unwrap_or_default().to_string(),
        },
        // TOML has no word for nothing, and no key of ours can be nothing.
        Value::Empty(..) => "\"\"".to_owned(),
    }
}

fn bare(key: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
    if !key.is_empty() && key.bytes().all(plain) { key.to_owned() } else { quoted(key) }
}

/// A TOML basic string. Its escapes are those of JSON, and DEL is to be escaped too.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string().replace('\u{7f}', "\\u007f")
}
