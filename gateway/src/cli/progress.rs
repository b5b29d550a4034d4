//! What is going on, on the standard error: a bar on a terminal, else one line per phase.

use std::{fmt::Write, io::IsTerminal, time::Duration};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};

/// One phase. It disappears from the terminal when it is dropped.
pub struct Progress(ProgressBar);

impl Progress {
    /// A phase of so many steps; 0 for one whose length is not known.
    pub fn new(what: &str, steps: u64) -> Self {
        if !std::io::stderr().is_terminal() {
            eprintln!("{what}");
            return Self::silent();
        }
        // Ten times a second: drawing costs the relay's time too.
        let target = ProgressDrawTarget::stderr_with_hz(10);
        let template = if steps == 0 {
            "{spinner} {msg} {pos} ({elapsed})"
        } else {
            "{msg} [{bar:30}] {pos}/{len} ({rate}, {eta} left)"
        };
        let style =
            ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = ProgressBar::with_draw_target((steps > 0).then_some(steps), target);
        let style = style.with_key("rate", |state: &ProgressState, out: &mut dyn Write| {
            // The bar is drawn without it when it cannot be written.
            let _ = write!(out, "{:.0}/s", state.per_sec());
        });
        bar.set_style(style.progress_chars("=> "));
        bar.set_message(what.to_owned());
        if steps == 0 {
            bar.enable_steady_tick(Duration::from_millis(200));
        }
        Self(bar)
    }

    /// A phase of so many bytes; 0 for one whose length is not known.
    pub fn bytes(what: &str, bytes: u64) -> Self {
        let progress = Self::new(what, bytes);
        if bytes > 0
            && let Ok(style) =
                ProgressStyle::with_template("{msg} [{bar:30}] {bytes}/{total_bytes} ({eta} left)")
        {
            progress.0.set_style(style.progress_chars("=> "));
        }
        progress
    }

    /// Shows nothing.
    pub fn silent() -> Self {
        Self(ProgressBar::hidden())
    }

    pub fn add(&self, steps: u64) {
        self.0.inc(steps);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
