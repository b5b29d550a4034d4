//! Logs go to the standard error; `RUST_LOG` says which.

use std::io::{self, IsTerminal};

use tracing_subscriber::{EnvFilter, filter::ParseError};

const VARIABLE: &str = "RUST_LOG";

/// Without `RUST_LOG`: our own news, and of the libraries only what an operator can act upon. Peers
/// that come and go make the network libraries warn all day.
const DEFAULT: &str = "info,iroh=warn,iroh::socket::transports::relay=off,iroh_gossip=error,iroh_relay=warn,iroh_dns=error,\
    iroh_mainline_address_lookup=warn,iroh_mdns_address_lookup=warn,net_report=error,\
    netwatch=error,portmapper=error,swarm_discovery=error,noq=warn,noq_proto=warn,noq_udp=error,\
    mainline=warn,n0_mainline=warn,pkarr=error,hickory_proto=error,hickory_resolver=error,\
    nostr_relay_pool=off,nostr_sdk=warn,distributed_topic_tracker=warn,sqlx=warn,hyper=warn,\
    rustls=warn,tungstenite=warn,wasmtime=warn,cranelift_codegen=warn,zbus=warn,i18n_embed=off";

/// Why nothing can be logged.
#[derive(Debug, thiserror::Error)]
pub(super) enum LoggingError {
    #[error("RUST_LOG: not UTF-8 text")]
    NotText,
    #[error("RUST_LOG: {text:?} cannot be understood ({error}); write it like info,iroh=warn")]
    Invalid { text: String, error: ParseError },
    #[error("logging has been set up already")]
    Twice,
}

/// What is worth seeing of a command that works on files.
const QUIET: &str = "error,nostr_gateway=warn,plugin=warn";
/// What is worth seeing where a plugin is tried, without `RUST_LOG`.
const OF_PLUGINS: &str = "error,plugin=debug";

/// Sets up logging for the process.
pub(super) fn init() -> Result<(), LoggingError> {
    init_with(DEFAULT)
}

/// The same for a command whose user wants its result and hears of trouble alone.
pub(super) fn init_quietly() -> Result<(), LoggingError> {
    init_with(QUIET)
}

/// The same for a process that does nothing but try a plugin.
pub(super) fn init_for_plugins() -> Result<(), LoggingError> {
    init_with(OF_PLUGINS)
}

fn init_with(default: &str) -> Result<(), LoggingError> {
    let filter = match std::env::var(VARIABLE) {
        Ok(text) if !text.trim().is_empty() => parse(&text)?,
        Ok(_) | Err(std::env::VarError::NotPresent) => parse(default)?,
        Err(std::env::VarError::NotUnicode(_)) => return Err(LoggingError::NotText),
    };
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none())
        .try_init()
        .map_err(|_| LoggingError::Twice)
}

fn parse(text: &str) -> Result<EnvFilter, LoggingError> {
    EnvFilter::builder()
        .parse(text)
        .map_err(|error| LoggingError::Invalid { text: text.to_owned(), error })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_valid_and_nonsense_is_refused() {
        assert!([DEFAULT, OF_PLUGINS, QUIET].iter().all(|text| parse(text).is_ok()));
        let error = parse("info,iroh=loud").unwrap_err().to_string();
        assert!(
            error.starts_with("RUST_LOG: \"info,iroh=loud\" cannot be understood ("),
            "{error}"
        );
    }
}
