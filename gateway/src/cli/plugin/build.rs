//! `nostr-gateway plugin build`: from source to a component beside the manifest.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use clap::Args;
use serde_json::{Value, json};
use wit_component::ComponentEncoder;

use super::{Output, Refused, Said, in_folder};
use crate::{
    cli::table::size,
    plugins::manifest::{FILE_NAME, Manifest},
};

/// What plugins are compiled for: it has no system interface at all.
const TARGET: &str = "wasm32-unknown-unknown";

#[derive(Debug, Args)]
pub struct BuildArgs {
    /// The plugin's folder, with its plugin.toml
    #[arg(value_name = "DIR", default_value = ".")]
    dir: PathBuf,
    #[command(flatten)]
    pub output: Output,
}

pub(super) fn build(args: &BuildArgs) -> Result<Said, Refused> {
    let dir = &args.dir;
    let file = in_folder(dir, FILE_NAME);
    let manifest =
        Manifest::read(&file).map_err(|error| Refused(format!("{}: {error}", file.display())))?;
    let out = in_folder(dir, &manifest.file);
    if dir.join("Cargo.toml").is_file() {
        let module = compile(dir)?;
        let component = encode(&module)?;
        write(&out, &component).map_err(|error| Refused(format!("{}: {error}", out.display())))?;
    } else if dir.join("package.json").is_file() {
        npm(dir, &out)?;
    } else if dir.join("requirements.txt").is_file() {
        python(dir, &manifest.file)?;
    } else {
        return Err(Refused(format!(
            "{} has no Cargo.toml (Rust), package.json (JavaScript) or requirements.txt (Python)",
            dir.display()
        )));
    }
    let bytes =
        fs::metadata(&out).map_err(|error| Refused(format!("{}: {error}", out.display())))?.len();
    let text = format!("{}: {}\n", out.display(), size(bytes));
    Ok(Said { json: json!({ "file": out, "bytes": bytes }), text })
}

/// Whole or not at all: a gateway may be watching the folder.
fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let draft = path.with_extension("wasm.new");
    fs::write(&draft, bytes)?;
    fs::rename(&draft, path)
}

/// How the toolchain gets the standard library for the target.
enum Target {
    Installed,
    /// Compiled from source, which needs an unstable option.
    FromSource,
}

/// Compiles the crate in this folder and returns its core module.
fn compile(dir: &Path) -> Result<Vec<u8>, Refused> {
    let sysroot = sysroot(dir)?;
    let mut cargo = cargo(dir);
    cargo.args(["build", "--release", "--target", TARGET]);
    // What it makes is told on the standard output, what it says to people on the other one.
    cargo.arg("--message-format=json-render-diagnostics");
    if let Target::FromSource = target(&sysroot)? {
        cargo.arg("-Zbuild-std=std,panic_abort").env("RUSTC_BOOTSTRAP", "1");
    }
    let flags = rust_flags(&sysroot);
    if !flags.is_empty() {
        cargo.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"));
    }
    let output =
        cargo.stderr(Stdio::inherit()).output().map_err(|error| no_tool("cargo", &error))?;
    if !output.status.success() {
        return Err(Refused("not built: cargo failed".to_owned()));
    }
    let file = module(&String::from_utf8_lossy(&output.stdout), dir)?;
    fs::read(&file).map_err(|error| Refused(format!("{}: {error}", file.display())))
}

fn cargo(dir: &Path) -> Command {
    let mut cargo = Command::new("cargo");
    cargo.current_dir(dir);
    cargo
}

fn no_tool(name: &str, error: &io::Error) -> Refused {
    if error.kind() == io::ErrorKind::NotFound {
        return Refused(format!("there is no {name}: install Rust as https://rustup.rs tells"));
    }
    Refused(format!("{name} does not start: {error}"))
}

/// The folder of the toolchain that counts in this folder.
fn sysroot(dir: &Path) -> Result<PathBuf, Refused> {
    let sysroot = Command::new("rustc").args(["--print", "sysroot"]).current_dir(dir).output();
    let sysroot = sysroot.map_err(|error| no_tool("rustc", &error))?;
    if !sysroot.status.success() {
        let said = String::from_utf8_lossy(&sysroot.stderr).trim().to_owned();
        return Err(Refused(format!("rustc does not run: {said}")));
    }
    Ok(PathBuf::from(String::from_utf8_lossy(&sysroot.stdout).trim()))
}

/// # Errors
/// Says what to install.
fn target(sysroot: &Path) -> Result<Target, Refused> {
    choose(sysroot).ok_or_else(|| {
        Refused(format!(
            "the Rust toolchain in {} cannot compile for {TARGET} yet: run `rustup target add {TARGET}`",
            sysroot.display()
        ))
    })
}

fn choose(sysroot: &Path) -> Option<Target> {
    let rustlib = sysroot.join("lib/rustlib");
    if rustlib.join(TARGET).join("lib").is_dir() {
        return Some(Target::Installed);
    }
    rustlib.join("src/rust/library/std").is_dir().then_some(Target::FromSource)
}

/// Paths end up in the texts of panics: whose machine it was is nobody's business. Those of the plugin
/// itself are relative. The same flags for all plugins, so that what they share is compiled once.
/// Nothing where the author sets flags: these would take their place.
fn rust_flags(sysroot: &Path) -> Vec<String> {
    if env::var_os("RUSTFLAGS").is_some() || env::var_os("CARGO_ENCODED_RUSTFLAGS").is_some() {
        return Vec::new();
    }
    let cargo_home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let usual = || Some(PathBuf::from(env::var_os("HOME")?).join(".cargo"));
    let places = [
        (cargo_home.or_else(usual), "/cargo"),
        (Some(sysroot.join("lib/rustlib/src/rust")), "/rust"),
    ];
    let flag = |(place, name): (Option<PathBuf>, &str)| {
        Some(format!("--remap-path-prefix={}={name}", place?.to_str()?))
    };
    places.into_iter().filter_map(flag).collect()
}

/// The module that cargo says it made of the crate in this folder.
fn module(messages: &str, dir: &Path) -> Result<PathBuf, Refused> {
    let own = dir.join("Cargo.toml").canonicalize().ok();
    let made = messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|message| message["reason"] == "compiler-artifact")
        .filter(|message| {
            let manifest = message["manifest_path"].as_str().map(Path::new);
            manifest.and_then(|path| path.canonicalize().ok()) == own
        })
        .filter_map(|message| {
            let files = message["filenames"].as_array()?.iter().filter_map(Value::as_str);
            files.filter(|name| name.ends_with(".wasm")).map(PathBuf::from).next()
        })
        .next();
    made.ok_or_else(|| {
        Refused(
            "cargo made no module: Cargo.toml must say [lib] crate-type = [\"cdylib\", \"rlib\"]"
                .to_owned(),
        )
    })
}

/// A component of a core module that was built with the SDK: the module carries its world in a custom
/// section.
fn encode(module: &[u8]) -> Result<Vec<u8>, Refused> {
    let mut encoder = ComponentEncoder::default().validate(true);
    // `{:#}` keeps the causes, which name the import or export that does not fit.
    let wrong = |error| Refused(format!("no component can be made of it: {error:#}"));
    encoder = encoder.module(module).map_err(wrong)?;
    encoder.encode().map_err(wrong)
}

/// JavaScript: whatever the package's own script does.
fn npm(dir: &Path, out: &Path) -> Result<(), Refused> {
    if !dir.join("node_modules").is_dir() {
        let install = if dir.join("package-lock.json").is_file() { "ci" } else { "install" };
        step(dir, "npm", &[install, "--no-audit", "--no-fund"], "install Node.js")?;
    }
    step(dir, "npm", &["run", "build"], "install Node.js")?;
    made(out)
}

/// Python: componentize-py, out of an environment of the plugin's own. The module is called like the
/// component, with underscores.
fn python(dir: &Path, file: &str) -> Result<(), Refused> {
    let module = file.strip_suffix(".wasm").unwrap_or(file).replace('-', "_");
    let tool = PathBuf::from(if cfg!(windows) { "venv/Scripts" } else { "venv/bin" });
    if !dir.join(&tool).join("componentize-py").is_file() {
        step(dir, "python3", &["-m", "venv", "venv"], "install Python 3 with venv")?;
        let install = ["install", "--quiet", "--only-binary", ":all:", "-r", "requirements.txt"];
        step(dir, &tool.join("pip").display().to_string(), &install, "it came with venv")?;
    }
    let arguments = ["--wit-path", "wit", "--world", "plugin", "componentize", "--stub-wasi"];
    let arguments = [&arguments, [module.as_str(), "--output", file].as_slice()].concat();
    let tool = tool.join("componentize-py").display().to_string();
    step(dir, &tool, &arguments, "requirements.txt must list it")?;
    made(&in_folder(dir, file))
}

/// One command. What it says is for people, not an answer of ours.
fn step(dir: &Path, program: &str, arguments: &[&str], missing: &str) -> Result<(), Refused> {
    let said = format!("{program} {}", arguments.join(" "));
    eprintln!("{said}");
    // A path with a folder is one from the plugin's folder on, which only this makes certain.
    let found = dir.canonicalize()?.join(program);
    let mut command =
        Command::new(if found.is_file() { found.as_path() } else { Path::new(program) });
    let status = command.args(arguments).current_dir(dir).stdout(io::stderr()).status();
    let status =
        status.map_err(|error| Refused(format!("{program} does not start: {error}; {missing}")))?;
    if status.success() { Ok(()) } else { Err(Refused(format!("not built: {said} failed"))) }
}

fn made(out: &Path) -> Result<(), Refused> {
    if out.is_file() {
        Ok(())
    } else {
        Err(Refused(format!("not built: there is no {}", out.display())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_target_is_found_or_its_source() {
        let sysroot = tempfile::tempdir().unwrap();
        assert!(choose(sysroot.path()).is_none());
        fs::create_dir_all(sysroot.path().join("lib/rustlib/src/rust/library/std")).unwrap();
        assert!(matches!(choose(sysroot.path()), Some(Target::FromSource)));
        let target = sysroot.path().join("lib/rustlib").join(TARGET).join("lib");
        fs::create_dir_all(target).unwrap();
        assert!(matches!(choose(sysroot.path()), Some(Target::Installed)));
    }

    #[test]
    fn the_module_is_that_of_the_folder() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("Cargo.toml"), "").unwrap();
        let message = |manifest: &Path, file: &str| {
            json!({ "reason": "compiler-artifact", "manifest_path": manifest, "filenames": [file] })
                .to_string()
        };
        let own = dir.path().join("Cargo.toml");
        let other = message(Path::new("/other/Cargo.toml"), "/t/other.wasm");
        let rlib = message(&own, "/t/own.rlib");
        let wasm = message(&own, "/t/own.wasm");
        let all = format!("warning: not JSON\n{other}\n{rlib}\n{wasm}\n");
        assert_eq!(module(&all, dir.path()).ok(), Some("/t/own.wasm".into()));
        let none = module(&format!("{other}\n{rlib}\n"), dir.path()).err().unwrap().0;
        assert!(none.contains("crate-type"), "{none}");
    }

    #[test]
    fn what_is_no_module_is_refused() {
        assert!(
            encode(b"nonsense").err().unwrap().0.starts_with("no component can be made of it: ")
        );
        let empty = encode(b"\0asm\x01\0\0\0");
        assert!(empty.is_err() || empty.is_ok_and(|component| component.len() > 8));
    }
}
