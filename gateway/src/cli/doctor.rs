//! `nostr-gateway doctor`: checks what a gateway needs, and says what to do about what is missing.

mod clock;
mod disk;
mod keyring;
mod ports;

use std::process::ExitCode;

use serde_json::{Value, json};

use super::{Output, control, print};
use crate::{
    admin::api::Command,
    config::Loaded,
    gossip::check::{self, Check, KEYRING, Verdict},
    tasks,
};

/// A gateway that is there, as its `status` describes it; or none.
type Running = Option<Value>;

pub(super) fn run(loaded: &Loaded, output: Output) -> ExitCode {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let (running, silent) = match control::ask(&loaded.data_dir, &Command::Status, drop) {
        Ok(status) => (Some(status), None),
        Err(control::Failure::NotRunning(_)) => (None, None),
        Err(failure) => (None, Some(failure)),
    };
    if !output.json {
        let whom = match &running {
            Some(_) => "asking the gateway that is running",
            None if silent.is_some() => "a gateway is running but does not answer",
            None => "no gateway is running",
        };
        eprintln!("{} in {}; checking, up to half a minute …", whom, loaded.data_dir.display());
    }
    let network = async {
        let config = &loaded.config;
        match network_of(loaded, &running).await {
            Some(checks) => checks,
            None => check::network(&config.endpoint, &config.discovery).await,
        }
    };
    let secrets = async {
        match (&running, &silent) {
            (None, None) => Some(keyring::check(loaded).await),
            // It has the secrets, and tells of them with the rest.
            _ => None,
        }
    };
    let (mut checks, clock, secrets) =
        runtime.block_on(async { tokio::join!(network, clock::check(loaded), secrets) });
    checks.push(clock);
    if let Some(failure) = &silent {
        checks.push(Check::new("gateway", Verdict::Failed, failure.to_string()));
    }
    checks.extend(ports::check(loaded, &running));
    checks.extend(secrets);
    if !checks.iter().any(|check| check.what == KEYRING) {
        let found = "the gateway that is running does not tell";
        checks.push(Check::new(KEYRING, Verdict::NotChecked, found));
    }
    checks.extend(disk::check(&loaded.data_dir));
    // The port mapper may still wait for a router.
    runtime.shutdown_background();

    let printed = if output.json {
        let checks = json!({ "gateway_running": running.is_some(), "checks": checks });
        print(&format!("{checks}\n"))
    } else {
        print(&said(&checks))
    };
    let has_failed = checks.iter().any(|check| check.verdict == Verdict::Failed);
    if has_failed { ExitCode::FAILURE } else { printed }
}

/// What the running gateway says of the network; `None` when none is running.
async fn network_of(loaded: &Loaded, running: &Running) -> Option<Vec<Check>> {
    running.as_ref()?;
    let data_dir = loaded.data_dir.clone();
    // It waits for its answer on this thread.
    let asking = tasks::blocking(move || control::ask(&data_dir, &Command::Doctor, drop));
    match asking.await {
        Ok(Ok(answer)) => serde_json::from_value(answer["checks"].clone()).ok(),
        Ok(Err(error)) => Some(vec![Check::new("network", Verdict::Failed, error.to_string())]),
        Err(error) => Some(vec![Check::new("network", Verdict::Failed, error.to_string())]),
    }
}

fn said(checks: &[Check]) -> String {
    let width = checks.iter().map(|check| check.what.chars().count()).max().unwrap_or_default();
    let mut lines = String::new();
    for Check { what, verdict, found, advice } in checks {
        let verdict = match verdict {
            Verdict::Ok => "ok",
            Verdict::Warning => "warning",
            Verdict::Failed => "failed",
            Verdict::NotChecked => "not checked",
        };
        lines.push_str(&format!("{verdict:<11}  {what:<width$}  {found}\n"));
        if let Some(advice) = advice {
            lines.push_str(&format!("{:<11}  {:<width$}  -> {advice}\n", "", ""));
        }
    }
    lines
}
