//! A plugin's schema for its `[config]`: JSON Schema, as much of it as a table of settings needs.
//!
//! Of our own, because a schema comes with a stranger's plugin. What the crates for JSON Schema can do
//! beyond this, above all references, lets a short schema ask for endless work, and the lightest of
//! them brings seven crates. A keyword that is not known here is an error: a rule that nobody checks
//! would only look like one.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use regex_lite::{Regex, RegexBuilder};
use serde_json::{Map, Value};

/// The largest schema, in bytes, and the most schemas nested in it.
const MAX_BYTES: usize = 64 * 1024;
const MAX_NODES: usize = 1_000;

/// The most patterns, and the longest one.
const MAX_PATTERNS: usize = 32;
const MAX_PATTERN_BYTES: usize = 256;
const PATTERN_PROGRAM_BYTES: usize = 32 * 1024;

/// The most mistakes that are told at once.
const MAX_TOLD: usize = 5;

/// Keywords that say something to people alone.
const REMARKS: &[&str] =
    &["$schema", "$id", "$comment", "title", "description", "default", "examples", "deprecated"];

/// A schema that can be checked against.
pub struct Schema(Node);

/// What is wrong with a schema, or with what is checked against it. Begins with where.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SchemaError(String);

#[derive(Default)]
struct Node {
    /// The schema `false`: nothing fits.
    is_never: bool,
    types: Option<Vec<Type>>,
    one_of: Option<Vec<Value>>,
    any_of: Vec<Node>,
    properties: BTreeMap<String, Node>,
    required: Vec<String>,
    others: Option<Box<Node>>,
    items: Option<Box<Node>>,
    count: Bounds,
    is_unique: bool,
    length: Bounds,
    pattern: Option<Regex>,
    range: Range,
}

#[derive(Default)]
struct Bounds {
    least: Option<u64>,
    most: Option<u64>,
}

#[derive(Default)]
struct Range {
    least: Option<f64>,
    most: Option<f64>,
    above: Option<f64>,
    below: Option<f64>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Type {
    Null,
    Boolean,
    Integer,
    Number,
    String,
    Array,
    Object,
}

const TYPES: &[(&str, Type, &str)] = &[
    ("null", Type::Null, "null"),
    ("boolean", Type::Boolean, "true or false"),
    ("integer", Type::Integer, "a whole number"),
    ("number", Type::Number, "a number"),
    ("string", Type::String, "a text"),
    ("array", Type::Array, "a list"),
    ("object", Type::Object, "a table"),
];

impl Type {
    fn is_of(self, value: &Value) -> bool {
        match (self, value) {
            (Self::Null, Value::Null)
            | (Self::Boolean, Value::Bool(_))
            | (Self::Number, Value::Number(_))
            | (Self::String, Value::String(_))
            | (Self::Array, Value::Array(_))
            | (Self::Object, Value::Object(_)) => true,
            (Self::Integer, Value::Number(number)) => {
                number.is_i64() || number.is_u64() || number.as_f64().is_some_and(is_whole)
            }
            _ => false,
        }
    }

    fn named(self) -> &'static str {
        TYPES.iter().find(|(_, known, _)| *known == self).map_or("", |(_, _, name)| name)
    }
}

fn is_whole(number: f64) -> bool {
    number.is_finite() && number.fract() == 0.0
}

impl Schema {
    /// Reads a schema.
    ///
    /// # Errors
    /// When it is no JSON, too large, or has a keyword that is not known here.
    pub fn parse(text: &[u8]) -> Result<Self, SchemaError> {
        if text.len() > MAX_BYTES {
            return Err(SchemaError(format!("it is larger than {MAX_BYTES} bytes")));
        }
        let value: Value = serde_json::from_slice(text)
            .map_err(|error| SchemaError(format!("it is no JSON: {error}")))?;
        let mut parser = Parser { nodes: 0, patterns: 0 };
        parser.node(&value, &Place::Root("#")).map(Self)
    }

    /// Checks `[config]`.
    ///
    /// # Errors
    /// Names each value that does not fit, and what would; of many mistakes the first few.
    pub fn check(&self, config: &Value) -> Result<(), SchemaError> {
        let mut mistakes = Vec::new();
        self.0.check(config, &Place::Root("config"), &mut mistakes);
        match mistakes.is_empty() {
            true => Ok(()),
            false => Err(SchemaError(mistakes.join("; "))),
        }
    }
}

/// Where in a document: `config.words[3]`.
enum Place<'a> {
    Root(&'static str),
    Key(&'a Place<'a>, &'a str),
    At(&'a Place<'a>, usize),
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root(name) => f.write_str(name),
            Self::At(list, index) => write!(f, "{list}[{index}]"),
            Self::Key(table, key) => {
                let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '$');
                if !key.is_empty() && key.chars().all(plain) {
                    return write!(f, "{table}.{key}");
                }
                write!(f, "{table}.{:?}", super::printable::one_line(key, 64))
            }
        }
    }
}

struct Parser {
    nodes: usize,
    patterns: usize,
}

impl Parser {
    fn node(&mut self, value: &Value, place: &Place<'_>) -> Result<Node, SchemaError> {
        self.nodes += 1;
        if self.nodes > MAX_NODES {
            return Err(SchemaError(format!("it has more than {MAX_NODES} schemas in it")));
        }
        let keywords = match value {
            Value::Bool(fits) => return Ok(Node { is_never: !fits, ..Node::default() }),
            Value::Object(keywords) => keywords,
            _ => return Err(SchemaError(format!("{place}: want a schema"))),
        };
        let mut node = Node::default();
        for (keyword, value) in keywords {
            self.keyword(&mut node, keyword, value, &Place::Key(place, keyword))?;
        }
        Ok(node)
    }

    fn keyword(
        &mut self,
        node: &mut Node,
        keyword: &str,
        value: &Value,
        place: &Place<'_>,
    ) -> Result<(), SchemaError> {
        let wrong = |want: &str| SchemaError(format!("{place}: want {want}"));
        let whole = || value.as_u64().ok_or_else(|| wrong("a whole number"));
        let number = || value.as_f64().ok_or_else(|| wrong("a number"));
        match keyword {
            "type" => node.types = Some(types(value).ok_or_else(|| wrong("names of types"))?),
            "enum" => {
                node.one_of = Some(value.as_array().ok_or_else(|| wrong("a list"))?.clone());
            }
            "const" => node.one_of = Some(vec![value.clone()]),
            "anyOf" => {
                let schemas = value.as_array().ok_or_else(|| wrong("a list of schemas"))?;
                for (at, schema) in schemas.iter().enumerate() {
                    node.any_of.push(self.node(schema, &Place::At(place, at))?);
                }
            }
            "properties" => {
                for (key, schema) in object(value).ok_or_else(|| wrong("a table of schemas"))? {
                    let schema = self.node(schema, &Place::Key(place, key))?;
                    node.properties.insert(key.clone(), schema);
                }
            }
            "required" => node.required = texts(value).ok_or_else(|| wrong("a list of texts"))?,
            "additionalProperties" => node.others = Some(Box::new(self.node(value, place)?)),
            "items" => node.items = Some(Box::new(self.node(value, place)?)),
            "minItems" => node.count.least = Some(whole()?),
            "maxItems" => node.count.most = Some(whole()?),
            "uniqueItems" => {
                node.is_unique = value.as_bool().ok_or_else(|| wrong("true or false"))?;
            }
            "minLength" => node.length.least = Some(whole()?),
            "maxLength" => node.length.most = Some(whole()?),
            "pattern" => {
                let text = value.as_str().ok_or_else(|| wrong("a regular expression"))?;
                node.pattern = Some(self.pattern(text, place)?);
            }
            "minimum" => node.range.least = Some(number()?),
            "maximum" => node.range.most = Some(number()?),
            "exclusiveMinimum" => node.range.above = Some(number()?),
            "exclusiveMaximum" => node.range.below = Some(number()?),
            remark if REMARKS.contains(&remark) => {}
            _ => {
                return Err(SchemaError(format!(
                    "{place}: this gateway does not know the keyword"
                )));
            }
        }
        Ok(())
    }

    fn pattern(&mut self, text: &str, place: &Place<'_>) -> Result<Regex, SchemaError> {
        self.patterns += 1;
        if self.patterns > MAX_PATTERNS || text.len() > MAX_PATTERN_BYTES {
            return Err(SchemaError(format!(
                "{place}: more than {MAX_PATTERNS} patterns, or one of more than \
                 {MAX_PATTERN_BYTES} bytes"
            )));
        }
        let pattern = RegexBuilder::new(text).size_limit(PATTERN_PROGRAM_BYTES).build();
        pattern.map_err(|error| SchemaError(format!("{place}: {error}")))
    }
}

fn types(value: &Value) -> Option<Vec<Type>> {
    let named = |name: &Value| {
        let name = name.as_str()?;
        TYPES.iter().find(|(known, ..)| *known == name).map(|(_, found, _)| *found)
    };
    match value {
        Value::Array(names) => names.iter().map(named).collect(),
        name => named(name).map(|found| vec![found]),
    }
}

fn texts(value: &Value) -> Option<Vec<String>> {
    value.as_array()?.iter().map(|text| text.as_str().map(str::to_owned)).collect()
}

fn object(value: &Value) -> Option<&Map<String, Value>> {
    value.as_object()
}

impl Node {
    fn check(&self, value: &Value, place: &Place<'_>, mistakes: &mut Vec<String>) {
        if mistakes.len() >= MAX_TOLD {
            return;
        }
        let mut want = |what: fmt::Arguments<'_>| mistakes.push(format!("{place}: want {what}"));
        if self.is_never {
            mistakes.push(format!("{place}: there is no such setting"));
            return;
        }
        if let Some(types) = &self.types
            && !types.iter().any(|wanted| wanted.is_of(value))
        {
            let names: Vec<_> = types.iter().map(|wanted| wanted.named()).collect();
            want(format_args!("{}", names.join(" or ")));
            return;
        }
        if let Some(allowed) = &self.one_of
            && !allowed.contains(value)
        {
            let texts: Vec<_> = allowed.iter().take(20).map(Value::to_string).collect();
            want(format_args!("one of {}", texts.join(", ")));
            return;
        }
        match value {
            Value::String(text) => {
                let length = text.chars().count() as u64;
                self.length.check(length, "characters", &mut want);
                if let Some(pattern) = self.pattern.as_ref().filter(|p| !p.is_match(text)) {
                    want(format_args!("a text like {}", pattern.as_str()));
                }
            }
            Value::Number(number) => {
                self.range.check(number.as_f64().unwrap_or(f64::NAN), &mut want);
            }
            Value::Array(items) => {
                self.count.check(items.len() as u64, "entries", &mut want);
                let mut seen = BTreeSet::new();
                if self.is_unique && !items.iter().all(|item| seen.insert(item.to_string())) {
                    want(format_args!("each entry once"));
                }
                for (at, item) in items.iter().enumerate() {
                    if let Some(schema) = &self.items {
                        schema.check(item, &Place::At(place, at), mistakes);
                    }
                }
            }
            Value::Object(table) => self.check_table(table, place, mistakes),
            Value::Null | Value::Bool(_) => {}
        }
        self.check_any(value, place, mistakes);
    }

    fn check_table(
        &self,
        table: &Map<String, Value>,
        place: &Place<'_>,
        mistakes: &mut Vec<String>,
    ) {
        for key in self.required.iter().filter(|key| !table.contains_key(*key)) {
            mistakes.push(format!("{}: it is missing", Place::Key(place, key)));
        }
        for (key, value) in table {
            let schema = self.properties.get(key).or(self.others.as_deref());
            if let Some(schema) = schema {
                schema.check(value, &Place::Key(place, key), mistakes);
            }
        }
    }

    /// What fits none is told by what the first one wants.
    fn check_any(&self, value: &Value, place: &Place<'_>, mistakes: &mut Vec<String>) {
        let mut first = None;
        for schema in &self.any_of {
            let mut found = Vec::new();
            schema.check(value, place, &mut found);
            if found.is_empty() {
                return;
            }
            first.get_or_insert(found);
        }
        mistakes.extend(first.into_iter().flatten());
    }
}

impl Bounds {
    fn check(&self, number: u64, what: &str, want: &mut impl FnMut(fmt::Arguments<'_>)) {
        if let Some(least) = self.least.filter(|least| number < *least) {
            want(format_args!("at least {least} {what}"));
        }
        if let Some(most) = self.most.filter(|most| number > *most) {
            want(format_args!("at most {most} {what}"));
        }
    }
}

impl Range {
    fn check(&self, number: f64, want: &mut impl FnMut(fmt::Arguments<'_>)) {
        if let Some(least) = self.least.filter(|least| number < *least) {
            want(format_args!("{least} or more"));
        }
        if let Some(most) = self.most.filter(|most| number > *most) {
            want(format_args!("{most} or less"));
        }
        if let Some(above) = self.above.filter(|above| number <= *above) {
            want(format_args!("more than {above}"));
        }
        if let Some(below) = self.below.filter(|below| number >= *below) {
            want(format_args!("less than {below}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn checked(schema: Value, config: Value) -> Result<(), String> {
        let schema = Schema::parse(schema.to_string().as_bytes()).unwrap();
        schema.check(&config).map_err(|error| error.to_string())
    }

    fn blocklist() -> Value {
        json!({
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "type": "object",
            "properties": {
                "authors": {
                    "description": "public keys",
                    "type": "array",
                    "uniqueItems": true,
                    "maxItems": 3,
                    "items": {"type": "string", "pattern": "^[0-9a-f]{4}$"},
                },
                "words": {"type": "array", "items": {"type": "string", "minLength": 2}},
                "mode": {"enum": ["any", "all"]},
                "rate": {"type": "integer", "minimum": 1, "exclusiveMaximum": 10},
                "limits": {"type": "object", "additionalProperties": {"type": "number"}},
                "either": {"anyOf": [{"type": "string"}, {"type": "array", "minItems": 1}]},
            },
            "required": ["words"],
            "additionalProperties": false,
        })
    }

    #[test]
    fn a_configuration_that_fits_passes() {
        let full = json!({
            "authors": ["00ff"], "words": ["ab"], "mode": "all", "rate": 9,
            "limits": {"x": 1.5}, "either": ["x"],
        });
        assert_eq!(checked(blocklist(), full), Ok(()));
        assert_eq!(checked(blocklist(), json!({"words": [], "either": "x", "rate": 2.0})), Ok(()));
    }

    #[test]
    fn a_mistake_is_told_with_its_place() {
        for (config, told) in [
            (json!({"words": ["ab", 3]}), "config.words[1]: want a text"),
            (json!({"words": ["a"]}), "config.words[0]: want at least 2 characters"),
            (json!({}), "config.words: it is missing"),
            (json!({"words": [], "wrods": []}), "config.wrods: there is no such setting"),
            (json!({"words": [], "a b": 1}), "config.\"a b\": there is no such setting"),
            (
                json!({"words": [], "authors": ["xyz"]}),
                "config.authors[0]: want a text like ^[0-9a-f]{4}$",
            ),
            (
                json!({"words": [], "authors": ["0000", "0000"]}),
                "config.authors: want each entry once",
            ),
            (json!({"words": [], "mode": "none"}), "config.mode: want one of \"any\", \"all\""),
            (json!({"words": [], "rate": 10}), "config.rate: want less than 10"),
            (json!({"words": [], "rate": 0}), "config.rate: want 1 or more"),
            (json!({"words": [], "rate": 1.5}), "config.rate: want a whole number"),
            (json!({"words": [], "limits": {"x": "1"}}), "config.limits.x: want a number"),
            (json!({"words": [], "either": 3}), "config.either: want a text"),
            (
                json!({"words": 1, "mode": 2}),
                "config.mode: want one of \"any\", \"all\"; config.words: want a list",
            ),
        ] {
            assert_eq!(checked(blocklist(), config), Err(told.to_owned()));
        }
        let many = json!({"words": [0, 1, 2, 3, 4, 5, 6, 7]});
        assert_eq!(checked(blocklist(), many).unwrap_err().matches("want").count(), MAX_TOLD);
    }

    #[test]
    fn a_schema_that_cannot_be_checked_is_refused() {
        let error = |text: &str| match Schema::parse(text.as_bytes()) {
            Err(error) => error.to_string(),
            Ok(_) => panic!("{text}"),
        };
        assert!(error("{").starts_with("it is no JSON: "));
        assert_eq!(error("3"), "#: want a schema");
        assert_eq!(
            error(r##"{"properties": {"a": {"$ref": "#"}}}"##),
            "#.properties.a.$ref: this gateway does not know the keyword"
        );
        assert_eq!(error(r#"{"type": "text"}"#), "#.type: want names of types");
        assert_eq!(error(r#"{"minItems": -1}"#), "#.minItems: want a whole number");
        assert!(error(r#"{"pattern": "("}"#).starts_with("#.pattern: "));
        assert!(error(r#"{"pattern": "(a{100}){100}"}"#).starts_with("#.pattern: "));
        let deep = format!("{}true{}", r#"{"items":"#.repeat(120), "}".repeat(120));
        assert!(Schema::parse(deep.as_bytes()).is_ok());
        let many: Vec<Value> = (0..MAX_NODES).map(|_| json!(true)).collect();
        let many = json!({ "anyOf": many }).to_string();
        assert_eq!(error(&many), "it has more than 1000 schemas in it");
        assert_eq!(error(&" ".repeat(MAX_BYTES + 1)), "it is larger than 65536 bytes");
    }
}
