//! Client libraries as people use them, against the gateway's binary.
//!
//! `tests/clients/run` installs the libraries of other languages and runs this with all of them;
//! `cargo test` by itself runs it with the one for Rust alone.
//!
//! Each library has a program of its own and a gateway of its own. The program writes `ok CHECK` or
//! `not ok CHECK: REASON` for everything it has seen to hold or not, and asks for the gateway to go
//! and come back with `restart` (as a service is restarted) or `crash` (`kill -9`); the answer on its
//! standard input is `restarted`. What a program must check is written here: a check that did not
//! run has failed.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "test code fails loudly")]

mod rust_sdk;

use std::{
    env,
    path::PathBuf,
    process::{Command, ExitCode},
    time::Duration,
};

use nostr_gateway_tests::{Child, Gateway, GatewayBuilder};
use tokio::{task::JoinSet, time::Instant};

/// The gateway's binary, built from this tree together with this program.
const GATEWAY: &str = env!("CARGO_BIN_EXE_nostr-gateway-under-test");

/// Where `tests/clients/run` has put the programs for Node with their `node_modules`.
const NODE: &str = "CLIENTS_NODE";
/// The virtual environment that it has made.
const PYTHON: &str = "CLIENTS_PYTHON";
/// The argument with which this program is the client itself.
const RUST_PROGRAM: &str = "--nostr-sdk-rust";

/// A topic that every gateway here is in, with a name that has to be escaped.
const TOPIC: &str = "one two";

/// How long one library's program may run.
const PATIENCE: Duration = Duration::from_secs(90);

/// A client library: its name, what starts its program, and what that must check.
struct Library {
    name: &'static str,
    program: Program,
    /// What it must do besides [`CHECKS`].
    own_checks: &'static [&'static str],
}

impl Library {
    fn checks(&self) -> impl Iterator<Item = &'static str> {
        CHECKS.iter().chain(self.own_checks).copied()
    }
}

enum Program {
    /// In this directory, with `node_modules` beside it.
    Node(&'static str),
    Python(&'static str),
    /// This program itself, with this argument.
    Own(&'static str),
}

/// What every library must do.
const CHECKS: &[&str] = &[
    "publish",
    "forged",
    "subscribe",
    "topic",
    "restart",
    "crash",
    "auth",
    "auth live",
    "stranger",
    "count",
    "count guarded",
    "search",
    "negentropy",
    "negentropy guarded",
];

const LIBRARIES: &[Library] = &[
    Library {
        name: "nostr-tools",
        program: Program::Node("nostr-tools.mjs"),
        own_checks: &["alive"],
    },
    Library { name: "ndk", program: Program::Node("ndk.mjs"), own_checks: &["alive"] },
    Library { name: "nostr-sdk-rust", program: Program::Own(RUST_PROGRAM), own_checks: &[] },
    Library { name: "nostr-sdk-python", program: Program::Python("nostr-sdk.py"), own_checks: &[] },
];

#[tokio::main]
async fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    if let [program, url] = arguments.as_slice()
        && program == RUST_PROGRAM
    {
        rust_sdk::run(url).await;
        return ExitCode::SUCCESS;
    }
    // As in other tests, words choose by a part of the name, and options are for a harness.
    let words: Vec<&String> = arguments.iter().filter(|word| !word.starts_with("--")).collect();
    let installed = env::var_os(NODE).is_some() && env::var_os(PYTHON).is_some();
    let libraries = LIBRARIES
        .iter()
        .filter(|library| installed || matches!(library.program, Program::Own(_)))
        .filter(|library| {
            words.is_empty() || words.iter().any(|word| library.name.contains(*word))
        });

    let begin = Instant::now();
    let mut running: JoinSet<(usize, usize)> = libraries.map(run).collect();
    let (mut passed, mut failed) = (0, 0);
    // Without what `run` installs, most are left out, and a word may be meant for other tests.
    if installed && running.is_empty() {
        println!("not ok: there is no library with {words:?} in its name");
        failed += 1;
    }
    while let Some(end) = running.join_next().await {
        // A panic has printed its own reason.
        let (ok, all) = end.unwrap_or((0, 1));
        passed += ok;
        failed += all - ok;
    }
    println!(
        "test result: {}. {passed} passed; {failed} failed; 0 ignored; 0 measured; 0 filtered out; \
         finished in {:.2}s",
        if failed == 0 { "ok" } else { "FAILED" },
        begin.elapsed().as_secs_f32()
    );
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Runs one library's program. Returns how many checks hold, and how many there are.
async fn run(library: &'static Library) -> (usize, usize) {
    // On the same port after a restart, as a configured relay is.
    let gateway = GatewayBuilder::new(GATEWAY, library.name).topics(&[TOPIC]).start().await;
    let mut gateway = Some(gateway);
    let url = gateway.as_ref().map(Gateway::url).unwrap();
    let mut child = Child::spawn(library.name, library.program.command(&url));

    let mut seen: Vec<String> = Vec::new();
    let (mut passed, mut strange) = (0, 0);
    let deadline = Instant::now() + PATIENCE;
    let mut lines = 0;
    while let Some(line) = child.next_stdout_line(&mut lines, deadline).await {
        let name = library.name;
        let (holds, check) = match (line.strip_prefix("ok "), line.strip_prefix("not ok ")) {
            (Some(check), _) => (true, check),
            (_, Some(check)) => (false, check),
            _ if line == "restart" || line == "crash" => {
                let before = gateway.take().unwrap();
                gateway = Some(come_back(before, line == "crash").await);
                child.write_line("restarted").await;
                continue;
            }
            // Whatever a library prints by itself.
            _ => continue,
        };
        let title = check.split(':').next().unwrap();
        if library.checks().all(|check| check != title) || seen.iter().any(|other| other == title) {
            println!("not ok {name} {check} (not a check of this library, or a second time)");
            strange += 1;
            continue;
        }
        seen.push(title.to_owned());
        passed += usize::from(holds);
        println!("{} {name} {check}", if holds { "ok" } else { "not ok" });
    }

    for check in library.checks().filter(|check| seen.iter().all(|seen| seen != check)) {
        println!("not ok {} {check}: did not run", library.name);
    }
    let all = library.checks().count() + strange;
    if passed < all {
        print_output(library.name, &child, gateway.as_ref());
    }
    child.kill().await;
    (passed, all)
}

/// Ends the gateway and starts it on the same port and data directory.
async fn come_back(mut gateway: Gateway, by_crash: bool) -> Gateway {
    if by_crash {
        gateway.kill9().await;
    } else {
        let status = gateway.interrupt().await;
        assert!(status.success(), "the gateway ended with {status}");
    }
    gateway.restart_in_place().await
}

fn print_output(name: &str, child: &Child, gateway: Option<&Gateway>) {
    println!("---- output of {name} ----");
    for line in child.stdout().iter().chain(&child.stderr()) {
        println!("{line}");
    }
    let log = gateway.map(Gateway::log).unwrap_or_default();
    println!("---- the end of its gateway's log ----");
    for line in &log[log.len().saturating_sub(40)..] {
        println!("{line}");
    }
}

impl Program {
    fn command(&self, url: &str) -> Command {
        let installed = |variable: &str| -> PathBuf {
            env::var_os(variable).expect("main has looked for it").into()
        };
        let mut command = match self {
            Self::Node(file) => {
                let mut command = Command::new("node");
                // Packages are looked for beside the program, so it runs where they are.
                command.arg(installed(NODE).join(file));
                command
            }
            Self::Python(file) => {
                let mut command = Command::new(installed(PYTHON).join("bin/python"));
                command.arg("-u");
                command.arg(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("clients").join(file));
                command
            }
            Self::Own(program) => {
                let mut command = Command::new(env::current_exe().unwrap());
                command.arg(program);
                command
            }
        };
        command.arg(url);
        command
    }
}
