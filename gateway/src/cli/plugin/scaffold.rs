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

/// What the worked examples in other languages are called, and their source among the files below.
const EXAMPLE: &str = "mentions";
const SOURCE: &str = "source";

macro_rules! example {
    ($folder:literal, $source:literal: $($name:literal),* $(,)?) => {
        &[
            (SOURCE, example!(text $folder, $source)),
            $(($name, example!(text $folder, $name)),)*
        ]
    };
    (text $folder:literal, $name:literal) => {
        include_str!(concat!("../../../../plugins/examples/", $folder, "/", $name))
    };
}

const JAVASCRIPT: &[(&str, &str)] = example!(
    "javascript", "mentions.js": ".npmrc", "package.json", "package-lock.json", "plugin.toml",
    "wit/world.wit",
);

const PYTHON: &[(&str, &str)] =
    example!("python", "mentions.py": "requirements.txt", "plugin.toml", "wit/world.wit");

/// What they are tried with.
const EXPECTED: &[(&str, &str)] = &[
    (".gitignore", include_str!("template/mentions/gitignore")),
    ("events.jsonl", include_str!("template/mentions/events.jsonl")),
    ("golden.txt", include_str!("template/mentions/golden.txt")),
];

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
    if args.lang != Language::Rust && args.world != Template::EventFilter {
        return Err(Refused(
            "there is a template for event filters only in this language; \
             docs/plugins-javascript-python.md tells more"
                .to_owned(),
        ));
    }
    let dir = args.dir.clone().unwrap_or_else(|| PathBuf::from(name));
    let files = match args.lang {
        Language::Rust => of_rust(name, args.world),
        Language::Js => of_example(name, JAVASCRIPT, &format!("{name}.js")),
        Language::Python => of_example(name, PYTHON, &format!("{}.py", name.replace('-', "_"))),
    };
    write_all(&dir, files).map_err(|error| Refused(format!("{}: {error}", dir.display())))?;
    let shown = dir.display();
    let own_tests = match args.lang {
        Language::Rust => "cargo test                     # its own tests, natively\n",
        Language::Js | Language::Python => "",
    };
    let text = format!(
        "made {shown}. What now:\n\ncd {shown}\n{own_tests}\
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

/// Paths in the folder, and texts.
type Files = Vec<(String, String)>;

fn of_rust(name: &str, world: Template) -> Files {
    let named = |(path, text): &(&str, &str)| ((*path).to_owned(), text.replace(NAME, name));
    let own = COMMON.iter().chain(world.files()).map(named);
    let sdk = sdk::files().map(|(path, text)| (format!("sdk/{path}"), text));
    let lock = ("Cargo.lock".to_owned(), sdk::LOCK.to_owned());
    own.chain(sdk).chain([lock]).collect()
}

/// The worked example in another language, under another name.
fn of_example(name: &str, files: &[(&str, &str)], source: &str) -> Files {
    let named = |(path, text): &(&str, &str)| match *path {
        SOURCE => (source.to_owned(), (*text).to_owned()),
        "wit/world.wit" => {
            ((*path).to_owned(), text.replace(&format!("examples:{EXAMPLE}"), "my:plugin"))
        }
        // In all others the word is nothing but its name.
        _ => ((*path).to_owned(), text.replace(EXAMPLE, name)),
    };
    let interface = sdk::interface().iter();
    let interface = interface
        .map(|(file, text)| (format!("wit/deps/nostr-gateway/{file}"), (*text).to_owned()));
    let expected = EXPECTED.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned()));
    files.iter().map(named).chain(interface).chain(expected).collect()
}

fn write_all(dir: &Path, files: Files) -> io::Result<()> {
    if dir.exists() {
        return Err(io::Error::other("that is there already"));
    }
    for (path, text) in files {
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
            write_all(&dir, of_rust("my-plugin", world)).unwrap();
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
            assert!(write_all(&dir, Vec::new()).is_err(), "nothing is overwritten");
        }
    }

    #[test]
    fn the_examples_in_other_languages_get_their_own_name() {
        for (files, source) in [(JAVASCRIPT, "a-b.js"), (PYTHON, "a_b.py")] {
            let files = of_example("a-b", files, source);
            let text = |name: &str| &files.iter().find(|(path, _)| path == name).unwrap().1;
            let manifest = Manifest::parse(text("plugin.toml")).unwrap();
            assert_eq!((manifest.id.as_str(), manifest.file.as_str()), ("a-b", "a-b.wasm"));
            assert!(text(source).contains("evaluate"));
            assert!(text("wit/deps/nostr-gateway/types.wit").contains("record event"));
            assert!(text("wit/world.wit").contains("package my:plugin;"));
            let asked = parse(text("events.jsonl"), manifest.world).unwrap();
            assert_eq!(asked.len(), text("golden.txt").lines().count());
        }
        let package = of_example("a-b", JAVASCRIPT, "a-b.js");
        let package = &package.iter().find(|(path, _)| path == "package.json").unwrap().1;
        assert!(package.contains("--js a-b.js --output a-b.wasm"), "{package}");
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
