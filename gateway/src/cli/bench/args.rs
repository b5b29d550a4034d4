//! The command line of `nostr-gateway bench`.

use std::{path::PathBuf, time::Duration};

use clap::{Args, ValueEnum};

/// One thing that can be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Scenario {
    /// Signature verifications per second on one core: the yardstick for publish. Needs no relay
    Verify,
    /// Publish --events events and wait for their OKs
    Publish,
    /// By id, author and kind, hashtag, kind: in equal parts, up to EOSE
    Query,
    /// What clients really ask: home feed, thread, catch-up, hashtag and author, and the mix above
    Clients,
    /// Full-text search (NIP-50)
    Search,
    /// Live delivery to --subscribers connections, paced and as fast as it goes
    Fanout,
    /// Many open connections that do nothing
    Idle,
}

#[derive(Debug, Clone, Args)]
pub struct BenchArgs {
    /// The relay to measure
    #[arg(default_value = "ws://127.0.0.1:4869")]
    pub url: String,
    /// What to measure, separated by commas [default: everything]
    #[arg(long, value_enum, value_delimiter = ',', value_name = "SCENARIO")]
    pub only: Vec<Scenario>,

    /// Events to publish
    #[arg(long, default_value_t = 50_000, value_name = "N",
          value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    pub events: u64,
    /// Publish this many events first, without measuring
    #[arg(long, default_value_t = 0, value_name = "N",
          value_parser = clap::value_parser!(u64).range(0..=100_000_000))]
    pub prefill: u64,
    /// Authors of the events
    #[arg(long, default_value_t = 3_000, value_name = "N",
          value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub authors: u32,
    /// Another seed gives other events
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub seed: u64,
    /// Where signed events are kept for the next run [default: nostr-gateway-bench in the system's
    /// temporary directory]
    #[arg(long, value_name = "DIR")]
    pub cache: Option<PathBuf>,

    /// Connections that publish or ask at the same time
    #[arg(long, default_value_t = 4, value_name = "N",
          value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub clients: u32,
    /// Events on their way per publishing connection
    #[arg(long, default_value_t = 64, value_name = "N",
          value_parser = clap::value_parser!(u32).range(1..=4_096))]
    pub in_flight: u32,
    /// Seconds for each of query, clients, search and paced fanout
    #[arg(long, default_value_t = 10.0, value_name = "SECONDS", value_parser = seconds)]
    pub duration: f64,
    /// Acknowledge at once what the relay sends (Linux). Without it, a relay that leaves Nagle's
    /// algorithm on waits 40 ms for an ordinary client now and then
    #[arg(long)]
    pub quick_ack: bool,
    /// Connections that all subscribe to what fanout publishes
    #[arg(long, default_value_t = 100, value_name = "N",
          value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub subscribers: u32,
    /// Events per second of the paced fanout
    #[arg(long, default_value_t = 200, value_name = "N",
          value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub rate: u32,
    /// Events of the fanout that goes as fast as it can
    #[arg(long, default_value_t = 10_000, value_name = "N",
          value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub burst: u32,
    /// Connections that idle opens
    #[arg(long, visible_alias = "connections", default_value_t = 10_000, value_name = "N",
          value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub idle_connections: u32,

    /// The relay's process on this machine: its CPU time and private memory are reported (Linux).
    /// With --data-dir, the size of that directory too
    #[arg(long, value_name = "PID")]
    pub pid: Option<u32>,
    /// Write the figures as JSON to this file, or with - to the standard output in place of the table
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Publish thousands of meaningless events also to a relay that is not on this machine
    #[arg(long)]
    pub yes: bool,
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.1..=86_400.0).contains(&seconds) => Ok(seconds),
        _ => Err("want seconds from 0.1 to 86400".to_owned()),
    }
}

impl BenchArgs {
    /// Whether a scenario is to run.
    pub fn runs(&self, scenario: Scenario) -> bool {
        self.only.is_empty() || self.only.contains(&scenario)
    }

    /// Events of the paced fanout. They are made in advance and kept in memory: at most a million.
    pub fn paced_events(&self) -> u32 {
        (self.duration * f64::from(self.rate)).ceil().min(1e6) as u32
    }

    pub fn duration(&self) -> Duration {
        Duration::from_secs_f64(self.duration)
    }

    /// How many events the data set has. Without a publish scenario or a prefill, the relay is taken
    /// to hold what an earlier run published.
    pub fn set_size(&self) -> u64 {
        if self.prefill > 0 && !self.runs(Scenario::Publish) {
            self.prefill
        } else {
            self.prefill + self.events
        }
    }

    /// Whether events are sent to the relay at all.
    pub fn publishes(&self) -> bool {
        self.prefill > 0
            || [Scenario::Publish, Scenario::Fanout, Scenario::Idle].iter().any(|s| self.runs(*s))
    }

    /// Whether a relay is needed at all.
    pub fn needs_relay(&self) -> bool {
        self.prefill > 0 || self.only != [Scenario::Verify]
    }
}
