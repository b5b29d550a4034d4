//! The command line. Each subcommand has a file of its own; what it prints for its user goes to the
//! standard output, everything else to the standard error.

mod age;
pub mod backup;
pub mod bench;
mod config;
mod control;
mod doctor;
pub mod events;
pub mod import;
mod logging;
mod peers;
pub mod plugin;
mod progress;
mod reach;
pub mod run;
mod status;
pub mod sync;
mod table;
#[cfg(test)]
mod tests;
mod text;
pub mod topic;
pub mod upstream;

use std::{io, path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand};

use crate::config::{ConfigErrors, Flags, Loaded, Sources, load};

/// The exit code for a wrong command line or configuration, as clap has it.
const USAGE: u8 = 2;

/// A Nostr relay on localhost that is a window onto peer-to-peer gossip topics.
#[derive(Debug, Parser)]
#[command(
    name = "nostr-gateway",
    version,
    max_term_width = 100,
    propagate_version = true,
    after_help = "Settings come from the built-in default, then the configuration file, then \
                  variables like NOSTR_GATEWAY_RELAY__LISTEN, then flags. RUST_LOG sets what is \
                  logged, for example RUST_LOG=debug."
)]
pub struct Cli {
    #[command(flatten)]
    pub places: Places,
    #[command(subcommand)]
    pub command: Command,
}

/// The flags that every subcommand has.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Global options")]
pub struct Places {
    /// The configuration file [default: config.toml in the user's configuration directory, if there
    /// is one] [env: NOSTR_GATEWAY_CONFIG]
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Where database, keys and sockets are kept [default: the user's data directory] [env:
    /// NOSTR_GATEWAY_DATA_DIR]
    #[arg(long, global = true, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the gateway until it is told to stop
    Run(RunArgs),
    /// Show how the running gateway is doing
    Status(Output),
    /// Show the gateway's own endpoint, and which other gateways it is connected to
    Peers(Output),
    /// Join, leave and look at topics while the gateway runs
    Topic(topic::TopicArgs),
    /// Look at the streams from and to other relays, pause and resume them
    Upstream(upstream::UpstreamArgs),
    /// Install plugins, and look after them
    ///
    /// Asks the gateway that runs in the data directory, if there is one; what it does in the plugins
    /// folder counts at once then.
    Plugin(plugin::PluginArgs),
    /// Take in events from a file, one in each line, as if a client had published them
    ///
    /// What a deletion, a ban or a plugin keeps out stays out, and what is known is passed over. The gateway
    /// that runs in the data directory does it; when none runs, its files are worked on. Exit code: 1 when
    /// some were refused or it was broken off, 130 after Ctrl-C; what was counted is in then, and --resume
    /// goes on.
    Import(import::ImportArgs),
    /// Print all events that are stored, one in each line, in the order in which they came
    ///
    /// Direct messages and private topics too, so keep the file to yourself. With or without a running
    /// gateway.
    Export(events::ExportArgs),
    /// Print the stored events that a filter matches, newest first
    ///
    /// Direct messages and private topics too. With or without a running gateway.
    Scan(events::ScanArgs),
    /// Delete stored events for good
    ///
    /// No other gateway and no upstream relay brings them back; whoever publishes or imports one again does.
    /// Others keep what they have. With or without a running gateway. Exit code: 2 when nobody agreed.
    Delete(events::DeleteArgs),
    /// Bring this gateway and a relay together, once
    ///
    /// Events of one side that the other one lacks cross, as a stream of the configuration would let them:
    /// through limits, bans and plugins in, and never direct messages, protected events or those of private
    /// topics out. By comparing where the relay has NIP-77, else by reading all of it. With or without a
    /// running gateway. Exit code: 1 when it could not be done to its end, 130 after Ctrl-C; what crossed has
    /// crossed then, and the same command goes on.
    Sync(sync::SyncArgs),
    /// Copy all that must be kept into one file, while the gateway goes on
    ///
    /// The database as it is at this moment, grants, plugins in the data directory, and the encrypted secrets
    /// without their key. Not the configuration file, and no secrets that rest in a keyring. With or without
    /// a running gateway, which writes the file itself.
    Backup(backup::BackupArgs),
    /// Bring a backup back; the gateway must not be running
    ///
    /// The backup is looked at first, and nothing is removed: with --force what is there goes aside.
    Restore(backup::RestoreArgs),
    /// Check what the gateway needs: network, clock, ports, keyring, disk
    ///
    /// Takes the same flags as run. Asks the running gateway, if there is one in the data directory.
    /// The exit code is 1 when something failed.
    Doctor(DoctorArgs),
    /// Look at the configuration, and let the running gateway read it again
    Config(ConfigArgs),
    /// Measure a relay: publishing, queries, live delivery, idle connections
    ///
    /// Publishes thousands of meaningless events, so give it a relay with an empty data directory that
    /// passes nothing on to others.
    Bench(bench::BenchArgs),
}

#[derive(Debug, Clone, Default, Args)]
pub struct RunArgs {
    #[command(flatten)]
    pub overrides: Overrides,
}

#[derive(Debug, Clone, Default, Args)]
pub struct DoctorArgs {
    #[command(flatten)]
    pub overrides: Overrides,
    #[command(flatten)]
    pub output: Output,
}

/// How an answer is printed.
#[derive(Debug, Clone, Copy, Default, Args)]
pub struct Output {
    /// Print JSON, for programs
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct ConfigArgs {
    #[command(subcommand)]
    pub command: ConfigCommand,
}

#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Print the configuration in effect as TOML, each line with who set it
    ///
    /// Takes the same flags as run, so that their effect can be seen.
    Show(RunArgs),
    /// Print the annotated default, to begin a configuration file with
    Default,
    /// Print the path of the configuration file, and whether it is there
    Path,
    /// Let the running gateway read its configuration again, and tell what came of it
    ///
    /// It does so by itself a moment after the file was written. Streams ([[upstream]]) count at once,
    /// everything else after a restart.
    Reload(Output),
}

/// Flags that set a value of the configuration for one run.
#[derive(Debug, Clone, Default, Args)]
pub struct Overrides {
    /// Address and port for Nostr clients (relay.listen), like 127.0.0.1:4869
    #[arg(long, value_name = "ADDR")]
    pub listen: Option<String>,
    /// Address and port for metrics and state (admin.listen), like 127.0.0.1:4870
    #[arg(long, value_name = "ADDR")]
    pub admin: Option<String>,
    /// Join this topic in place of those of the configuration (topics.join). Can be given several
    /// times. What `topic join` joined stays joined. Unless topics.default is set, events also go there when nothing else says where
    #[arg(long = "topic", value_name = "NAME")]
    pub topics: Vec<String>,
    /// Bring the events of this relay into topics.default, like wss://relay.example.org. Can be
    /// given several times; each is one more [[upstream]]
    #[arg(long = "upstream", value_name = "URL")]
    pub upstreams: Vec<String>,
}

impl From<Overrides> for Flags {
    fn from(given: Overrides) -> Self {
        let Overrides { listen, admin, topics, upstreams } = given;
        Self { listen, admin, topics, upstreams }
    }
}

/// The exit code of what should have become another program, as shells have it.
#[cfg(unix)]
const CANNOT_RUN: u8 = 127;

/// What follows the hidden command by which the gateway starts a plugin's program.
#[cfg(unix)]
fn words_of_program() -> Option<impl Iterator<Item = std::ffi::OsString>> {
    let mut words = std::env::args_os().skip(1);
    (words.next()? == crate::plugins::program::COMMAND).then_some(words)
}

/// The program: reads the command line, does what it says, and says how it went.
pub fn main() -> ExitCode {
    #[cfg(unix)]
    if let Some(words) = words_of_program() {
        eprintln!("{}", crate::plugins::program::become_program(words));
        return ExitCode::from(CANNOT_RUN);
    }
    let Cli { places, command } = match Cli::try_parse() {
        Ok(cli) => cli,
        // Also --help and --version, which clap prints to the standard output.
        Err(error) => {
            let code = u8::try_from(error.exit_code()).unwrap_or(USAGE);
            // Nobody is left to tell when the terminal is gone.
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    match command {
        Command::Run(args) => {
            let sources = sources(places, args.overrides);
            let loaded = match read(&sources) {
                Ok(loaded) => loaded,
                Err(code) => return code,
            };
            if let Err(error) = logging::init() {
                eprintln!("{error}");
                return ExitCode::from(USAGE);
            }
            for warning in loaded.config.warnings() {
                tracing::warn!("{warning}");
            }
            run::run(loaded, sources)
        }
        Command::Status(output) => status::run(output, places),
        Command::Peers(output) => peers::run(output, places),
        Command::Topic(args) => topic::run(args, places),
        Command::Upstream(args) => upstream::run(args, places),
        Command::Plugin(args) => plugin::run(args, places),
        Command::Import(args) => import::import(args, &places),
        Command::Export(args) => events::export(args, &places),
        Command::Scan(args) => events::scan(args, &places),
        Command::Delete(args) => events::delete(args, &places),
        Command::Sync(args) => sync::sync(args, &places),
        Command::Backup(args) => backup::backup(args, &places),
        Command::Restore(args) => backup::restore(args, &places),
        Command::Doctor(args) => match read(&sources(places, args.overrides)) {
            Ok(loaded) => doctor::run(&loaded, args.output),
            Err(code) => code,
        },
        Command::Bench(args) => bench::run(args, places.data_dir),
        Command::Config(args) => match args.command {
            ConfigCommand::Show(args) => match read(&sources(places, args.overrides)) {
                Ok(loaded) => print(&crate::config::show(&loaded)),
                Err(code) => code,
            },
            ConfigCommand::Default => print(crate::config::DEFAULT_TOML),
            ConfigCommand::Reload(output) => config::reload(output, places),
            ConfigCommand::Path => print(&config::path(&sources(places, Overrides::default()))),
        },
    }
}

fn sources(places: Places, overrides: Overrides) -> Sources {
    Sources::of_process(places.config, places.data_dir, overrides.into())
}

/// Reads the configuration; what is wrong with it goes to the standard error.
fn read(sources: &Sources) -> Result<Loaded, ExitCode> {
    load(sources).map_err(|errors: ConfigErrors| {
        eprintln!("{errors}");
        ExitCode::from(USAGE)
    })
}

/// Prints to the standard output. A reader that has gone (`| head`) is no failure.
fn print(text: &str) -> ExitCode {
    use io::Write as _;
    match io::stdout().lock().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cannot write to the standard output: {error}");
            ExitCode::FAILURE
        }
    }
}
