//! The layers of the configuration, later ones over earlier ones: built-in default, file,
//! environment, flags. Each value remembers its layer.

use std::{collections::BTreeSet, ffi::OsString, path::PathBuf};

use figment::{
    Figment, Metadata, Profile, Provider,
    providers::{Format, Toml},
    value::{Dict, Map, Value},
};

use super::{
    Flags,
    check::closest,
    errors::ConfigError,
    file::File,
    keys::{self, Form},
    provenance::{ENVIRONMENT, FILE, FLAG, FOLLOWS},
    values,
};

/// What every variable of the configuration begins with.
const PREFIX: &str = "NOSTR_GATEWAY_";
/// The variables behind `--config` and `--data-dir`.
pub(super) const CONFIG_VARIABLE: &str = "NOSTR_GATEWAY_CONFIG";
pub(super) const DATA_DIR_VARIABLE: &str = "NOSTR_GATEWAY_DATA_DIR";

/// One layer: a tree and a name for where it came from.
struct Layer {
    kind: &'static str,
    name: String,
    tree: Dict,
}

impl Layer {
    fn new(kind: &'static str, name: impl Into<String>, tree: Dict) -> Self {
        Self { kind, name: name.into(), tree }
    }

    /// A layer of a single value.
    fn one(
        kind: &'static str,
        name: impl Into<String>,
        section: &str,
        key: &str,
        v: Value,
    ) -> Self {
        let table = Dict::from([(key.to_owned(), v)]);
        Self::new(kind, name, Dict::from([(section.to_owned(), table.into())]))
    }
}

impl Provider for Layer {
    fn metadata(&self) -> Metadata {
        Metadata::from(self.kind, self.name.clone())
    }

    fn data(&self) -> figment::Result<Map<Profile, Dict>> {
        Ok(Profile::Default.collect(self.tree.clone()))
    }
}

/// Puts all layers together.
pub(super) fn merge(
    file: Option<&File>,
    environment: &[(OsString, OsString)],
    flags: &Flags,
    errors: &mut Vec<ConfigError>,
) -> Figment {
    let mut figment = Figment::from(Toml::string(super::DEFAULT_TOML));
    if let Some(file) = file {
        let name = file.path.display().to_string();
        figment = figment.merge(Layer::new(FILE, name, file.tree.clone()));
    }
    for layer in variables(environment, errors) {
        figment = figment.merge(layer);
    }
    for (flag, section, value) in
        [("--listen", "relay", &flags.listen), ("--admin", "admin", &flags.admin)]
    {
        if let Some(value) = value {
            let value = Value::from(value.as_str());
            figment = figment.merge(Layer::one(FLAG, flag, section, "listen", value));
        }
    }
    if !flags.topics.is_empty() {
        let topics: Vec<&str> = flags.topics.iter().map(String::as_str).collect();
        let topics = Value::from(topics);
        figment = figment.merge(Layer::one(FLAG, "--topic", "topics", "join", topics));
    }
    with_upstreams(with_default_topics(figment), &flags.upstreams)
}

/// Where nobody set `topics.default` and the built-in one is not joined, it follows `topics.join`:
/// whoever says `--topic cats` wants to publish there and should not have to say it twice.
fn with_default_topics(figment: Figment) -> Figment {
    let set = figment.find_metadata("topics.default").is_some_and(|from| from.source.is_some());
    let (joined, default) = (texts(&figment, "topics.join"), texts(&figment, "topics.default"));
    if set || default.is_subset(&joined) {
        return figment;
    }
    let Ok(Value::Array(_, join)) = figment.find_value("topics.join") else { return figment };
    let mut seen = BTreeSet::new();
    // What is wrong in topics.join is said there, once.
    let join = join.iter().filter_map(Value::as_str);
    let join: Vec<&str> = join.filter(|t| values::topic(t).is_ok() && seen.insert(*t)).collect();
    figment.merge(Layer::one(FOLLOWS, "topics.join", "topics", "default", join.into()))
}

fn texts(figment: &Figment, key: &str) -> BTreeSet<String> {
    let value = figment.find_value(key);
    let list = value.as_ref().ok().and_then(Value::as_array).unwrap_or_default();
    list.iter().filter_map(Value::as_str).map(str::to_owned).collect()
}

/// `--upstream URL`: a stream named after the host, down into `topics.default`, beside those of the
/// other layers.
fn with_upstreams(mut figment: Figment, urls: &[String]) -> Figment {
    let mut names = BTreeSet::new();
    match figment.find_value("upstream") {
        Ok(Value::Array(_, streams)) => {
            let name_of = |stream: &Value| Some(stream.find_ref("name")?.as_str()?.to_owned());
            names.extend(streams.iter().filter_map(name_of));
        }
        // Not a list: adding to it would hide the mistake.
        Ok(_) => return figment,
        Err(_) => {}
    }
    // A topic of topics.default that is not joined is complained about there, once.
    let joined = texts(&figment, "topics.join");
    let default = figment.find_value("topics.default");
    let default = default.as_ref().ok().and_then(Value::as_array).unwrap_or_default();
    let topics = default.iter().filter_map(Value::as_str);
    let topics: Vec<&str> = topics.filter(|topic| joined.contains(*topic)).collect();
    for url in urls {
        let name = free_name(url, &names);
        names.insert(name.clone());
        let stream = Dict::from([
            ("name".to_owned(), name.into()),
            ("urls".to_owned(), vec![url.as_str()].into()),
            ("direction".to_owned(), "down".into()),
            ("topics".to_owned(), topics.clone().into()),
        ]);
        let tree = Dict::from([("upstream".to_owned(), vec![Value::from(stream)].into())]);
        figment = figment.admerge(Layer::new(FLAG, "--upstream", tree));
    }
    figment
}

/// The host of the URL as a stream name, with a number when it is taken.
fn free_name(url: &str, taken: &BTreeSet<String>) -> String {
    let host = url::Url::parse(url).ok().and_then(|url| url.host_str().map(str::to_owned));
    let clean = |c: char| if values::in_upstream_name(c as u8) && c.is_ascii() { c } else { '-' };
    let host: String = host.unwrap_or_default().chars().map(clean).take(56).collect();
    let host = match host.trim_matches('-') {
        "" => "relay",
        host => host,
    };
    std::iter::once(host.to_owned())
        .chain((2..).map(|number| format!("{host}-{number}")))
        .find(|name| !taken.contains(name))
        .expect("the numbers do not end")
}

/// The layers of the environment, one for each variable.
fn variables(environment: &[(OsString, OsString)], errors: &mut Vec<ConfigError>) -> Vec<Layer> {
    let mut layers = Vec::new();
    for (name, value) in environment {
        let Some(name) = name.to_str() else { continue };
        let Some(rest) = name.strip_prefix(PREFIX) else { continue };
        if is_foreign(rest) || name == CONFIG_VARIABLE || name == DATA_DIR_VARIABLE {
            continue;
        }
        let Some(target) = Target::of(rest) else {
            errors.push(ConfigError::new(name, unknown_variable(name)));
            continue;
        };
        let read = match value.to_str() {
            Some(value) => target.read(value),
            None => Err("not UTF-8 text".to_owned()),
        };
        match read {
            Ok(tree) => layers.push(Layer::new(ENVIRONMENT, name, tree)),
            Err(text) => errors.push(ConfigError::new(name, format!("{}: {text}", target.path()))),
        }
    }
    layers
}

/// Kubernetes (for a service of that name) and Docker links set such variables on their own.
fn is_foreign(rest: &str) -> bool {
    rest == "PORT" || rest.starts_with("PORT_") || rest.starts_with("SERVICE_")
}

/// What a variable sets.
enum Target {
    Key(&'static str, &'static keys::Key),
    List(&'static str),
}

impl Target {
    fn of(rest: &str) -> Option<Self> {
        keys::SECTIONS.iter().find_map(|section| {
            if section.list {
                return (rest == section.name.to_uppercase()).then_some(Self::List(section.name));
            }
            let (head, tail) = rest.split_once("__")?;
            if head != section.name.to_uppercase() {
                return None;
            }
            let key = section.keys.iter().find(|key| tail == key.name.to_uppercase())?;
            Some(Self::Key(section.name, key))
        })
    }

    fn path(&self) -> String {
        match self {
            Self::Key(section, key) => format!("{section}.{}", key.name),
            Self::List(section) => (*section).to_owned(),
        }
    }

    /// Reads the variable's text as what the key wants: a text is taken as it is, a list is written
    /// as in TOML.
    fn read(&self, text: &str) -> Result<Dict, String> {
        match self {
            Self::List(section) => {
                Ok(Dict::from([((*section).to_owned(), toml(text, "a list of tables")?)]))
            }
            Self::Key(section, key) => {
                let value = match &key.form {
                    Form::Text(_) => text.into(),
                    Form::WordOrTexts(..) if !text.trim_start().starts_with('[') => text.into(),
                    Form::Switch | Form::Number(..) => {
                        // What is no TOML at all is refused later, with what is allowed.
                        toml(text, "").unwrap_or_else(|_| text.into())
                    }
                    _ => toml(text, "a list of texts, like [\"one\", \"two\"]")?,
                };
                let table = Dict::from([(key.name.to_owned(), value)]);
                Ok(Dict::from([((*section).to_owned(), table.into())]))
            }
        }
    }
}

fn toml(text: &str, wanted: &str) -> Result<Value, String> {
    let wrong = || format!("{text:?} is not {wanted}, written as in TOML");
    let mut tree: Dict = Toml::from_str(&format!("v = {text}")).map_err(|_| wrong())?;
    match (tree.remove("v"), tree.is_empty()) {
        (Some(value), true) => Ok(value),
        // The text had a line break and a second key behind it.
        _ => Err(wrong()),
    }
}

fn unknown_variable(name: &str) -> String {
    let mut names = vec![CONFIG_VARIABLE.to_owned(), DATA_DIR_VARIABLE.to_owned()];
    for section in keys::SECTIONS {
        let upper = section.name.to_uppercase();
        if section.list {
            names.push(format!("{PREFIX}{upper}"));
            continue;
        }
        let keys = section.keys.iter().map(|key| key.name.to_uppercase());
        names.extend(keys.map(|key| format!("{PREFIX}{upper}__{key}")));
    }
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    match closest(name, &names) {
        Some(close) => format!("unknown variable; did you mean {close}?"),
        None => "unknown variable; a key of the configuration is written like \
                 NOSTR_GATEWAY_RELAY__LISTEN, with two underscores behind the section"
            .to_owned(),
    }
}

/// A path from a variable; set but empty counts as not set.
pub(super) fn path_variable(environment: &[(OsString, OsString)], name: &str) -> Option<PathBuf> {
    let found = environment.iter().find(|(key, value)| key == name && !value.is_empty());
    found.map(|(_, value)| PathBuf::from(value))
}
