//! `nostr-gateway plugin`: installing plugins and looking after them.
//!
//! Folders and grants are files that the gateway watches, so these commands change the files; a
//! gateway that runs is asked to look at once, and for what it alone knows.

mod build;
mod scaffold;
mod sdk;
mod trial;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::{
    Output, Overrides, Places, USAGE,
    control::{self, Failure},
    print, sources,
    table::{size, table},
    text::{joined, list, number, text},
};
use crate::{
    admin::api::Command,
    config,
    plugins::{
        self,
        granted::{Granted, listed},
        install::{self, Package},
        manifest::Capability,
    },
    store,
};

#[derive(Debug, Args)]
pub struct PluginArgs {
    #[command(subcommand)]
    pub command: PluginCommand,
}

#[derive(Debug, Subcommand)]
pub enum PluginCommand {
    /// Show the plugins in the order in which they are asked, and how each is doing
    List(Output),
    /// Show all that is known of one plugin
    Show(Plugin),
    /// Install a plugin
    ///
    /// Compiles and tries it first, and shows what it asks for. log, config and clock are every
    /// plugin's; what goes beyond must be granted with --grant. One that is a program is not sandboxed:
    /// it is started with --grant program only.
    Add {
        /// The plugin's folder, or a component (.wasm) with its manifest beside or in it
        #[arg(value_name = "PATH")]
        path: PathBuf,
        /// Allow it to use these, like kv,lookup
        #[arg(long, value_name = "NAMES", value_delimiter = ',', value_parser = capability)]
        grant: Vec<Capability>,
        /// Put it in the place of one with the same id, its configuration included. That one is kept
        /// in the plugins folder as .ID.previous
        #[arg(long)]
        replace: bool,
        #[command(flatten)]
        output: Output,
    },
    /// Remove a plugin, with its configuration, its grants and what it remembers
    Remove {
        #[command(flatten)]
        plugin: Plugin,
        /// Keep what it remembers, for when it is installed again
        #[arg(long)]
        keep_data: bool,
    },
    /// Let a plugin run: again after disable, or at once out of quarantine
    Enable {
        #[command(flatten)]
        plugin: Plugin,
        /// Allow it to use these from now on, like kv,lookup
        #[arg(long, value_name = "NAMES", value_delimiter = ',', value_parser = capability)]
        grant: Vec<Capability>,
    },
    /// Switch a plugin off: nobody asks it, what it would have judged passes
    Disable(Plugin),
    /// Compile and try a plugin without installing it
    ///
    /// The exit code is 1 when it does not run. A program, which is not sandboxed, is not started.
    Check {
        /// The plugin's folder, or a component (.wasm) with its manifest beside or in it
        #[arg(value_name = "PATH")]
        path: PathBuf,
        #[command(flatten)]
        output: Output,
    },
    /// Begin a new plugin: a folder that builds, with tests and examples
    ///
    /// The SDK comes with it, as source in the folder sdk. It is the one of this program, so that the
    /// plugin fits the gateway.
    New(scaffold::NewArgs),
    /// Build a plugin from its source
    ///
    /// Writes the component beside plugin.toml. Rust needs cargo and the target
    /// wasm32-unknown-unknown, or the standard library's source (rust-src). For JavaScript, npm runs the
    /// package's own script; for Python, what requirements.txt lists is put into the folder venv.
    Build(build::BuildArgs),
    /// Ask a plugin about a file of events, without installing it
    ///
    /// It runs as in the gateway: same sandbox, scope and limits, with everything granted. Its clock
    /// stands at the time of each event. The exit code is 1 when what it says is not what the golden
    /// file says; without one, when a call failed.
    Test(trial::TestArgs),
}

#[derive(Debug, Clone, Args)]
pub struct Plugin {
    /// The id in the plugin's manifest, as `plugin list` shows it
    #[arg(value_name = "ID")]
    pub id: String,
    #[command(flatten)]
    pub output: Output,
}

fn capability(name: &str) -> Result<Capability, String> {
    Capability::parse(name).ok_or_else(|| {
        let names = listed(Capability::ALL).replace(',', ", ");
        format!("there is no capability {name:?}; there are {names}")
    })
}

pub(super) fn run(args: PluginArgs, places: Places) -> ExitCode {
    // These have nothing to do with where a gateway is.
    match &args.command {
        PluginCommand::Check { path, output } => return told(check(path), *output),
        PluginCommand::New(args) => return told(scaffold::new(args), args.output),
        PluginCommand::Build(args) => return told(build::build(args), args.output),
        PluginCommand::Test(args) => return trial::test(args),
        _ => {}
    }
    let place = match Place::find(places) {
        Ok(place) => place,
        Err(code) => return code,
    };
    match args.command {
        PluginCommand::List(output) => told(place.list(), output),
        PluginCommand::Show(Plugin { id, output }) => told(place.show(&id), output),
        PluginCommand::Add { path, grant, replace, output } => {
            told(place.add(&path, &grant, replace), output)
        }
        PluginCommand::Remove { plugin: Plugin { id, output }, keep_data } => {
            told(place.remove(&id, keep_data), output)
        }
        PluginCommand::Enable { plugin: Plugin { id, output }, grant } => {
            told(place.enable(&id, &grant), output)
        }
        PluginCommand::Disable(Plugin { id, output }) => told(place.disable(&id), output),
        PluginCommand::Check { .. }
        | PluginCommand::New(_)
        | PluginCommand::Build(_)
        | PluginCommand::Test(_) => ExitCode::SUCCESS,
    }
}

/// What a command says: for programs and for people.
struct Said {
    json: Value,
    text: String,
}

/// Why a command did nothing: an exit code, and a sentence unless it was said already.
struct Refused(String);

impl<E: std::error::Error> From<E> for Refused {
    fn from(error: E) -> Self {
        Self(error.to_string())
    }
}

fn told(result: Result<Said, Refused>, output: Output) -> ExitCode {
    match result {
        Ok(said) if output.json => print(&format!("{}\n", said.json)),
        Ok(said) => print(&said.text),
        Err(Refused(why)) => {
            eprintln!("{why}");
            ExitCode::FAILURE
        }
    }
}

/// Where plugins and grants are, and whether a gateway runs there.
struct Place {
    dir: PathBuf,
    data_dir: PathBuf,
    /// What the gateway that runs there says of its plugins.
    running: Option<Value>,
}

impl Place {
    fn find(places: Places) -> Result<Self, ExitCode> {
        let data_dir = control::data_dir(places.clone())?;
        match control::ask(&data_dir, &Command::PluginList, drop) {
            Ok(answer) => {
                let dir = PathBuf::from(text(&answer["dir"]));
                return Ok(Self { dir, data_dir, running: Some(answer) });
            }
            Err(Failure::NotRunning(_)) => {}
            Err(failure) => return Err(failure.report()),
        }
        let loaded = config::load(&sources(places, Overrides::default())).map_err(|errors| {
            eprintln!("{errors}");
            ExitCode::from(USAGE)
        })?;
        let (dir, _) = plugins::dir(&loaded.config.plugins, &data_dir);
        Ok(Self { dir, data_dir, running: None })
    }

    fn granted(&self) -> Result<Granted, Refused> {
        Ok(Granted::read(&self.data_dir)?)
    }

    /// Asks the running gateway.
    fn ask(&self, command: &Command) -> Result<Value, Refused> {
        Ok(control::ask(&self.data_dir, command, drop)?)
    }

    fn list(&self) -> Result<Said, Refused> {
        let plugins = match &self.running {
            Some(answer) => answer["plugins"].clone(),
            None => json!(install::survey(&self.dir, &self.granted()?)?),
        };
        let mut said = match list(&plugins) {
            [] => format!("there is no plugin in {}\n", self.dir.display()),
            plugins => table_of(plugins),
        };
        if self.running.is_none() {
            said.push_str(&format!(
                "\nno gateway is running in {}: this is what lies in {}\n",
                self.data_dir.display(),
                self.dir.display()
            ));
        }
        let running = self.running.is_some();
        let json = json!({ "running": running, "dir": self.dir, "plugins": plugins });
        Ok(Said { json, text: said })
    }

    fn show(&self, id: &str) -> Result<Said, Refused> {
        let plugin = match &self.running {
            Some(_) => self.ask(&Command::PluginShow { id: id.to_owned() })?,
            None => {
                let plugins = install::survey(&self.dir, &self.granted()?)?;
                let found = plugins.into_iter().find(|plugin| plugin["id"] == id);
                found.ok_or_else(|| self.unknown(id))?
            }
        };
        let mut said = shown(&plugin);
        if self.running.is_none() {
            let data_dir = self.data_dir.display();
            said.push_str(&format!("\nno gateway is running in {data_dir}\n"));
        }
        Ok(Said { json: plugin, text: said })
    }

    fn add(&self, path: &Path, grant: &[Capability], replace: bool) -> Result<Said, Refused> {
        let package = Package::read(path)?;
        let id = package.manifest.id.clone();
        let mut granted = self.granted()?;
        granted.allow(&id, grant);
        let asks = asks(&package.described(&granted));
        let missing = granted.missing(&id, &package.manifest.capabilities);
        if !missing.is_empty() {
            let missing = listed(&missing);
            let why = match package.manifest.is_program() {
                true => "it is a program and would not be sandboxed. If you trust it",
                false => "it asks for more than every plugin has. If that is right",
            };
            return Err(Refused(format!(
                "{asks}\nnot installed: {why}, add it with --grant {missing}"
            )));
        }
        package.check()?;
        let folder = package.install(&self.dir, replace)?;
        granted.enable(&id, true);
        self.write(&granted)?;
        let said = format!("{asks}\ninstalled in {}\n", folder.display());
        self.after(&id, Some(&folder), said)
    }

    fn remove(&self, id: &str, keep_data: bool) -> Result<Said, Refused> {
        let folder = install::remove(&self.dir, id)?;
        let mut granted = self.granted()?;
        granted.forget(id);
        self.write(&granted)?;
        self.look(Some(&folder))?;
        if !keep_data {
            match &self.running {
                Some(_) => drop(self.ask(&Command::PluginForget { id: id.to_owned() })?),
                None => store::forget_plugin(&self.data_dir, id)?,
            }
        }
        let text = match keep_data {
            true => format!("removed {id}; what it remembers is kept\n"),
            false => format!("removed {id}\n"),
        };
        Ok(Said { json: json!({ "id": id, "folder": folder, "kept_data": keep_data }), text })
    }

    fn enable(&self, id: &str, grant: &[Capability]) -> Result<Said, Refused> {
        self.require(id)?;
        let mut granted = self.granted()?;
        granted.allow(id, grant);
        granted.enable(id, true);
        self.write(&granted)?;
        let mut said = format!("{id} is enabled\n");
        if self.running.is_some() {
            self.look(None)?;
            let lifted = self.ask(&Command::PluginLift { id: id.to_owned() })?;
            if lifted["lifted"] == true {
                said.push_str("its quarantine is ended\n");
            }
        }
        self.after(id, None, said)
    }

    fn disable(&self, id: &str) -> Result<Said, Refused> {
        self.require(id)?;
        let mut granted = self.granted()?;
        granted.enable(id, false);
        self.write(&granted)?;
        self.after(id, None, format!("{id} is disabled: what it would have judged passes\n"))
    }

    /// Writes the grants if they changed.
    fn write(&self, granted: &Granted) -> Result<(), Refused> {
        if *granted != self.granted()? {
            granted.write(&self.data_dir)?;
        }
        Ok(())
    }

    fn require(&self, id: &str) -> Result<(), Refused> {
        match install::find(&self.dir, id)? {
            Some(_) => Ok(()),
            None => Err(self.unknown(id)),
        }
    }

    fn unknown(&self, id: &str) -> Refused {
        Refused(format!("there is no plugin {id} in {}", self.dir.display()))
    }

    /// Lets a gateway that runs look at what changed. Nothing when none does.
    fn look(&self, folder: Option<&Path>) -> Result<Option<Value>, Refused> {
        if self.running.is_none() {
            return Ok(None);
        }
        let name = folder.and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned());
        self.ask(&Command::PluginLook { folder: name }).map(Some)
    }

    /// Says what a change of a plugin came to. That a plugin does not run is a failure.
    fn after(&self, id: &str, folder: Option<&Path>, said: String) -> Result<Said, Refused> {
        let Some(answer) = self.look(folder)? else {
            let text = format!(
                "{said}no gateway is running in {}; it counts from the next start on\n",
                self.data_dir.display()
            );
            return Ok(Said { json: json!({ "id": id, "running": false }), text });
        };
        let plugin = list(&answer["plugins"]).iter().find(|plugin| plugin["id"] == id);
        let Some(plugin) = plugin else {
            return Err(Refused(format!("{said}but the running gateway does not see it")));
        };
        let state = state(plugin);
        if !plugin["state"]["broken"].is_null() || !plugin["update"].is_null() {
            return Err(Refused(format!("{said}but in the running gateway it is {state}")));
        }
        let json = json!({ "id": id, "running": true, "state": plugin["state"] });
        Ok(Said { json, text: format!("{said}in the running gateway it is {state}\n") })
    }
}

/// A file in a folder, as people write it.
fn in_folder(folder: &Path, name: &str) -> PathBuf {
    if folder == Path::new(".") { PathBuf::from(name) } else { folder.join(name) }
}

fn check(path: &Path) -> Result<Said, Refused> {
    let package = Package::read(path)?;
    let described = package.described(&Granted::default());
    let came_to = if package.manifest.is_program() {
        package.check_program()?;
        "it was not started: a program is not sandboxed; plugin add tries it"
    } else {
        package.check()?;
        "it runs"
    };
    let text = format!("{}\n{came_to}\n", asks(&described));
    Ok(Said { json: described, text })
}

/// What a plugin is and asks for, in a few lines.
fn asks(plugin: &Value) -> String {
    let limits = &plugin["limits"];
    let mut limit = format!("{} ms", number(&limits["time_ms"]));
    if !limits["memory_mib"].is_null() {
        limit.push_str(&format!(", {} MiB", number(&limits["memory_mib"])));
    }
    let optional = match list(&plugin["optional_capabilities"]) {
        [] => String::new(),
        _ => format!("; if granted {}", joined(&plugin["optional_capabilities"])),
    };
    let mut rows = vec![
        ("plugin", format!("{} {}", text(&plugin["id"]), text(&plugin["version"]))),
        ("world", text(&plugin["world"])),
        ("asks for", format!("{}{optional}", joined(&plugin["capabilities"]))),
        ("applies to", scope(&plugin["applies_to"])),
        ("limits", limit),
        ("when it fails", on_failure(plugin).to_owned()),
    ];
    if is_program(plugin) {
        // Nothing in it is for the terminal.
        let word = |word: &Value| format!("\"{}\"", text(word).escape_debug());
        let words: Vec<_> = list(&plugin["program"]).iter().map(word).collect();
        rows.insert(1, ("program", words.join(" ")));
        rows.insert(2, ("sandbox", "NONE: it may do whatever the gateway itself may".to_owned()));
    }
    let rows: Vec<_> = rows.iter().map(|(name, value)| format!("{name:<15} {value}")).collect();
    rows.join("\n")
}

/// Whether it is outside of the sandbox.
fn is_program(plugin: &Value) -> bool {
    plugin["sandboxed"] == false
}

fn on_failure(plugin: &Value) -> &'static str {
    match plugin["on_failure"].as_str() {
        Some("pass") => "events pass",
        _ => "events are refused",
    }
}

fn scope(applies_to: &Value) -> String {
    let fields = applies_to.as_object().into_iter().flatten();
    let parts: Vec<_> = fields
        .filter(|(_, values)| !list(values).is_empty())
        .map(|(name, values)| format!("{name} {}", joined(values)))
        .collect();
    if parts.is_empty() { "everything".to_owned() } else { parts.join("; ") }
}

fn shown(plugin: &Value) -> String {
    let mut lines = asks(plugin);
    let mut line = |name: &str, value: String| lines.push_str(&format!("\n{name:<15} {value}"));
    if !list(&plugin["not_granted"]).is_empty() {
        line("not granted", joined(&plugin["not_granted"]));
    }
    line("order", text(&plugin["order"]));
    line("configured", joined(&plugin["config_keys"]));
    line("folder", text(&plugin["folder"]));
    line("state", state(plugin));
    if let Some(bytes) = plugin["memory_bytes"].as_u64() {
        line("memory", size(bytes));
    }
    for (verdict, calls) in plugin["calls"].as_object().into_iter().flatten() {
        line(&format!("{verdict} calls"), text(calls));
    }
    if let Some(mean) = plugin["mean_call_us"].as_f64() {
        line("a call takes", format!("{mean:.1} µs on average"));
    }
    lines + "\n"
}

/// A table of plugins as `status` describes them.
pub(super) fn table_of(plugins: &[Value]) -> String {
    let row = |plugin: &Value| vec![text(&plugin["id"]), text(&plugin["version"]), state(plugin)];
    table(&["PLUGIN", "VERSION", "STATE"], &plugins.iter().map(row).collect::<Vec<_>>())
}

/// `ready`, `broken: why`, `in quarantine for 9 s: why`.
fn state(plugin: &Value) -> String {
    let fields = plugin["state"].as_object().and_then(|state| state.iter().next());
    let state = match fields {
        Some((name, fields)) => match (name.as_str(), number(&fields["failures"])) {
            ("quarantined", _) => format!(
                "in quarantine for {} s: {}",
                number(&fields["retry_in_s"]),
                text(&fields["cause"])
            ),
            ("broken", _) => format!("broken: {}", text(&fields["cause"])),
            (name, 0) => name.to_owned(),
            (name, failures) => format!("{name}, {failures} calls failed"),
        },
        None => "-".to_owned(),
    };
    let state = if is_program(plugin) { format!("{state} (not sandboxed)") } else { state };
    match plugin["update"].as_str() {
        Some(why) => format!("{state}; what lies in its folder now does not run: {why}"),
        None => state,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_are_told_in_words() {
        for (plugin, told) in [
            (json!({"state": {"ready": {"failures": 0}}}), "ready"),
            (json!({"state": {"ready": {"failures": 3}}}), "ready, 3 calls failed"),
            (json!({"state": {"broken": {"cause": "x"}}}), "broken: x"),
            (json!({"state": {"disabled": {}}}), "disabled"),
            (
                json!({"state": {"quarantined": {"failures": 9, "cause": "x", "retry_in_s": 7}}}),
                "in quarantine for 7 s: x",
            ),
            (
                json!({"state": {"ready": {"failures": 0}}, "update": "y"}),
                "ready; what lies in its folder now does not run: y",
            ),
            (
                json!({"state": {"ready": {"failures": 0}}, "sandboxed": false}),
                "ready (not sandboxed)",
            ),
            (json!({}), "-"),
        ] {
            assert_eq!(state(&plugin), told);
        }
    }

    #[test]
    fn a_scope_names_what_restricts_it() {
        assert_eq!(scope(&json!({"origins": [], "kinds": [], "topics": []})), "everything");
        assert_eq!(
            scope(&json!({"origins": ["client"], "kinds": [1, 7], "topics": []})),
            "kinds 1, 7; origins client"
        );
    }

    #[test]
    fn a_capability_that_there_is_not_is_named() {
        assert!(capability("log").is_ok());
        let error = capability("net").unwrap_err();
        assert!(error.contains("\"net\"") && error.contains("log, config, clock"), "{error}");
    }
}
