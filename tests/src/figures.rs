//! What the measuring programs found, as a table and as JSON.

use std::{fmt::Write as _, panic::AssertUnwindSafe, path::PathBuf, process::ExitCode};

use futures_util::FutureExt;
use serde_json::{Map, Value, json};

/// One line of the table.
pub struct Row {
    pub name: String,
    /// Label, and the figure with its unit.
    pub figures: Vec<(&'static str, f64)>,
    pub goal: &'static str,
    /// Whether the goal was reached; nothing where there is none, or in a quick run.
    pub met: Option<bool>,
    pub failure: Option<String>,
}

impl Row {
    pub fn new(name: impl Into<String>, goal: &'static str) -> Self {
        Self { name: name.into(), figures: Vec::new(), goal, met: None, failure: None }
    }

    pub fn failed(name: &str, why: &str) -> Self {
        Self { failure: Some(why.to_owned()), ..Self::new(name, "") }
    }

    /// Adds a figure. The label ends in its unit.
    pub fn figure(mut self, label: &'static str, value: f64) -> Self {
        self.figures.push((label, value));
        self
    }

    pub fn met(mut self, yes: bool) -> Self {
        self.met = Some(yes);
        self
    }

    pub fn text(&self) -> String {
        let mut text = format!("{:<34}", self.name);
        for (label, value) in &self.figures {
            let digits = if value.abs() < 100.0 && value.fract() != 0.0 { 2 } else { 0 };
            let _ = write!(text, "  {label} {value:.digits$}");
        }
        match (&self.failure, self.met) {
            (Some(why), _) => drop(write!(text, "  NOT MEASURED: {why}")),
            (None, Some(true)) => drop(write!(text, "  [{}: reached]", self.goal)),
            (None, Some(false)) => drop(write!(text, "  [{}: MISSED]", self.goal)),
            (None, None) => {}
        }
        text + "\n"
    }
}

pub fn table(rows: &[Row]) -> String {
    rows.iter().map(Row::text).collect()
}

pub fn json(rows: &[Row], quick: bool) -> Value {
    let rows: Vec<Value> = rows
        .iter()
        .map(|row| {
            let figures: Map<String, Value> = row
                .figures
                .iter()
                .map(|(label, value)| (label.replace(' ', "_"), json!(value)))
                .collect();
            json!({
                "name": row.name, "figures": figures, "goal": row.goal, "met": row.met,
                "failure": row.failure,
            })
        })
        .collect();
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    json!({"quick": quick, "cores": cores, "rows": rows})
}

/// Measures one after the other and prints what was found, as it comes and together in the end: as a
/// table, with the file as JSON too, with `-` as JSON alone. The exit code is not zero when something
/// could not be measured.
///
/// # Errors
/// When the file cannot be written.
pub async fn measure<N: Copy>(
    names: Vec<N>,
    title: impl Fn(N) -> &'static str,
    run: impl AsyncFn(N) -> Vec<Row>,
    quick: bool,
    file: Option<PathBuf>,
) -> anyhow::Result<ExitCode> {
    let mut done: Vec<Row> = Vec::new();
    for name in names {
        eprintln!("{} …", title(name));
        // What cannot be measured panics; the others go on.
        let measured = AssertUnwindSafe(run(name)).catch_unwind().await;
        let rows = measured.unwrap_or_else(|cause| {
            let text = cause.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| cause.downcast_ref::<&str>().copied());
            vec![Row::failed(title(name), text.unwrap_or("see above"))]
        });
        for row in &rows {
            eprint!("{}", row.text());
        }
        done.extend(rows);
    }
    let json = serde_json::to_string_pretty(&json(&done, quick))?;
    match file {
        Some(path) if path.as_os_str() == "-" => println!("{json}"),
        Some(path) => {
            std::fs::write(path, json)?;
            print!("{}", table(&done));
        }
        None => print!("{}", table(&done)),
    }
    let failed = done.iter().any(|row| row.failure.is_some());
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// The program that was named, or the first of these beside the one that runs.
///
/// # Errors
/// When there is none.
pub fn program(given: Option<PathBuf>, names: &[&str]) -> anyhow::Result<PathBuf> {
    if let Some(path) = given {
        return Ok(path);
    }
    let here = std::env::current_exe()?;
    let found = names.iter().map(|name| here.with_file_name(name)).find(|path| path.exists());
    found.ok_or_else(|| {
        anyhow::anyhow!("there is no {} beside {}; build it first", names[0], here.display())
    })
}
