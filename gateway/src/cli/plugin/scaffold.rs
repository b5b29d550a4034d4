//! `nostr-gateway plugin new`: a folder to begin with, that builds and has tests.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use clap::{Args, ValueEnum};
use serde_json::json;

use super::{Output, Refused, Said, sdk};
use crate::plugins::manifest::is_id;

#[derive(Debug, Args)]
pub struct NewArgs {
    /// What the plugin is called: lowercase letters, digits and hyphens
    #[arg(value_name = "NAME")]
    name: String,
    /// What it is written in
    #[arg(long, value_name = "LANGUAGE", value_enum, default_value_t = Language::Rust)]
    lang: Language,
    /// What it decides: which events pass, into which topics they go, or when secrets change
    #[arg(long, value_name = "WORLD", value_enum, default_value_t = Template::EventFilter)]
    world: Template,
    /// The folder, which must not exist [default: one called NAME]
    #[arg(long, value_name = "PATH")]
    dir: Option<PathBuf>,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Language {
    Rust,
    #[value(alias = "javascript")]
    Js,
    Python,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Template {
    EventFilter,
    TopicPolicy,
    SecretRotation,
}

/// What stands for the plugin's name in the files below.
const NAME: &str = "NAME";

macro_rules! template {
    ($world:literal) => {
        &[
            ("plugin.toml", include_str!(concat!("template/", $world, "/plugin.toml.in"))),
            (
                "config.schema.json",
                include_str!(concat!("template/", $world, "/config.schema.json")),
            ),
            ("src/lib.rs", include_str!(concat!("template/", $world, "/lib.rs.in"))),
            ("events.jsonl", include_str!(concat!("template/", $world, "/events.jsonl"))),
            ("golden.txt", include_str!(concat!("template/", $world, "/golden.txt"))),
        ]
    };
}

const COMMON: &[(&str, &str)] = &[
    ("Cargo.toml", include_str!("template/Cargo.toml.in")),
    (".gitignore", include_str!("template/gitignore")),
];

/// The package that a plugin must not be called like.
const SDK_PACKAGE: &str = "nostr-gateway-plugin";

impl Template {
    const fn files(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::EventFilter => template!("event-filter"),
            Self::TopicPolicy => template!("topic-policy"),
            Self::SecretRotation => template!("secret-rotation"),
        }
    }
}

pub(super) fn new(args: &NewArgs) -> Result<Said, Refused> {
    let name = args.name.as_str();
    if !is_id(name) || name == SDK_PACKAGE || !has_no_empty_part(name) {
        return Err(Refused(format!(
            "a plugin cannot be called {name:?}: want 1 to 64 lowercase letters, digits and single \
             hyphens, and a letter first"
        )));
    }
    let example = match args.lang {
        Language::Rust => None,
        Language::Js => Some("JavaScript: begin with a copy of plugins/examples/javascript"),
        Language::Python => Some("Python: begin with a copy of plugins/examples/python"),
    };
    if let Some(example) = example {
        return Err(Refused(format!(
            "there is no template for {example} of the gateway's source; \
             docs/writing-plugins.md tells more"
        )));
    }
    let dir = args.dir.clone().unwrap_or_else(|| PathBuf::from(name));
    write_all(&dir, name, args.world)
        .map_err(|error| Refused(format!("{}: {error}", dir.display())))?;
    let shown = dir.display();
    let text = format!(
        "made {shown}. What now:\n\
         \n\
         cd {shown}\n\
         cargo test                     # its own tests, natively\n\
         nostr-gateway plugin build     # makes {name}.wasm\n\
         nostr-gateway plugin test      # asks it about events.jsonl\n\
         nostr-gateway plugin add .     # installs it\n"
    );
    Ok(Said { json: json!({ "name": name, "dir": dir }), text })
}

/// Cargo makes the library's name of it.
fn has_no_empty_part(name: &str) -> bool {
    name.split('-').all(|part| !part.is_empty())
}

fn write_all(dir: &Path, name: &str, world: Template) -> io::Result<()> {
    if dir.exists() {
        return Err(io::Error::other("that is there already"));
    }
    let named = |(path, text): &(&str, &str)| ((*path).to_owned(), text.replace(NAME, name));
    let own = COMMON.iter().chain(world.files()).map(named);
    let sdk = sdk::files().map(|(path, text)| (format!("sdk/{path}"), text));
    let lock = [("Cargo.lock".to_owned(), sdk::LOCK.to_owned())];
    for (path, text) in own.chain(sdk).chain(lock) {
        let path = dir.join(path);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(path, text)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plugins::{
        manifest::Manifest,
        trial::{Question, parse},
    };

    #[test]
    fn each_template_has_a_right_manifest_and_events() {
        for world in [Template::EventFilter, Template::TopicPolicy, Template::SecretRotation] {
            let dir = tempfile::tempdir().unwrap();
            let dir = dir.path().join("new");
            write_all(&dir, "my-plugin", world).unwrap();
            let manifest = Manifest::read(&dir.join("plugin.toml")).unwrap();
            assert_eq!(
                (manifest.id.as_str(), manifest.file.as_str()),
                ("my-plugin", "my-plugin.wasm")
            );
            let value = world.to_possible_value().unwrap();
            assert_eq!(manifest.world.name(), value.get_name());
            let read = |name: &str| fs::read_to_string(dir.join(name)).unwrap();
            assert!(!read("src/lib.rs").contains(NAME) && !read("Cargo.toml").contains(NAME));
            let asked = parse(&read("events.jsonl"), manifest.world).unwrap();
            assert_eq!(asked.len(), read("golden.txt").lines().count());
            assert!(dir.join("sdk/wit/types.wit").is_file());
            // Real ones: whoever likes can publish them.
            assert!(asked.iter().all(|asked| match &asked.question {
                Question::Event { event, .. } => event.sig != [0; 64],
                _ => true,
            }));
            assert!(write_all(&dir, "my-plugin", world).is_err(), "nothing is overwritten");
        }
    }

    #[test]
    fn a_name_has_to_be_one_for_a_crate_and_a_folder() {
        let refused = |name: &str| {
            let (lang, world) = (Language::Rust, Template::EventFilter);
            let args = NewArgs {
                name: name.to_owned(),
                lang,
                world,
                dir: None,
                output: Output::default(),
            };
            new(&args).err().unwrap().0
        };
        for name in ["", "../x", "Big", "a--b", "a-", "1a", "nostr-gateway-plugin"] {
            assert!(refused(name).contains("cannot be called"), "{name}");
        }
    }
}
