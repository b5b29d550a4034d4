//! `nostr-gateway run`.

use std::process::ExitCode;

use tokio::signal;

use crate::{
    app::App,
    config::{Loaded, Sources},
    data_dir::DataDir,
    tasks::Tasks,
};

/// The exit code after a second Ctrl-C, or one in the middle of a command, as shells give it for SIGINT.
pub(super) const INTERRUPTED: u8 = 130;

/// Runs the gateway until it is told to stop.
pub fn run(loaded: Loaded, sources: Sources) -> ExitCode {
    // What is stored may be for its owner's eyes alone, also in a directory that others may list.
    #[cfg(unix)]
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    // Huge pages make an idle gateway take three times the memory, and nothing faster. A system that
    // does not let us choose is no failure.
    #[cfg(target_os = "linux")]
    let _ = rustix::thread::disable_transparent_huge_pages(true);
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!("cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let result = runtime.block_on(serve(loaded, sources));
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn serve(loaded: Loaded, sources: Sources) -> anyhow::Result<()> {
    let data_dir = DataDir::open(&loaded.data_dir)?;
    let mut stop = StopSignal::new()?;
    let app = tokio::select! {
        app = App::start(loaded.config, sources, data_dir) => app?,
        () = stop.received() => {
            tracing::info!("stopped while starting");
            return Ok(());
        }
    };
    app.announce();
    stop.received().await;
    tracing::info!("stopping; once more to stop at once");
    let signals = Tasks::new();
    signals.spawn("second signal", async move {
        stop.received().await;
        std::process::exit(INTERRUPTED.into());
    });
    app.stop().await;
    tracing::info!("stopped");
    Ok(())
}

/// Ctrl-C, or what a service supervisor sends.
pub(super) struct StopSignal {
    #[cfg(unix)]
    terminate: signal::unix::Signal,
    #[cfg(unix)]
    interrupt: signal::unix::Signal,
}

impl StopSignal {
    #[cfg(unix)]
    pub(super) fn new() -> std::io::Result<Self> {
        use signal::unix::{SignalKind, signal};
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    #[cfg(unix)]
    pub(super) async fn received(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }

    #[cfg(not(unix))]
    pub(super) fn new() -> std::io::Result<Self> {
        Ok(Self {})
    }

    #[cfg(not(unix))]
    pub(super) async fn received(&mut self) {
        // An error means that there is no console to be interrupted from.
        if signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
