//! The figures, as a table for people and as JSON for programs.

use std::fmt::Write as _;

use serde::Serialize;

use super::{
    fanout::FanoutReport, idle::IdleReport, latency::Summary, nip11::RelayInfo,
    publish::PublishReport, query::QueryReport, server::Used, verify::VerifyReport,
};

/// Everything that one run found out. What was not measured is null.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    pub url: String,
    pub relay: Option<RelayInfo>,
    pub load: Load,
    pub verify: Option<VerifyReport>,
    pub publish: Option<PublishReport>,
    pub query: Option<QueryReport>,
    pub clients: Option<QueryReport>,
    pub search: Option<QueryReport>,
    pub fanout: Option<FanoutReport>,
    pub idle: Option<IdleReport>,
    /// What a reader must know to believe the figures.
    pub notes: Vec<String>,
}

#[derive(Debug, Default, Serialize)]
pub struct Load {
    pub seed: u64,
    pub events: u64,
    pub prefill: u64,
    pub authors: u32,
    /// JSON of all events of the set.
    pub json_bytes: u64,
}

/// Headings, and under each rows of what and how much.
#[derive(Default)]
struct Table(Vec<(String, Option<String>)>);

impl Table {
    fn head(&mut self, text: &str) {
        self.0.push((text.to_owned(), None));
    }

    fn row(&mut self, what: &str, value: impl Into<String>) {
        self.0.push((format!("  {what}"), Some(value.into())));
    }

    fn latency(&mut self, what: &str, latency: Option<Summary>) {
        if let Some(latency) = latency {
            self.row(what, milliseconds(latency));
        }
    }

    fn used(&mut self, used: Option<Used>) {
        if let Some(Used { cpu_s, private_bytes }) = used {
            let memory = megabytes(private_bytes);
            self.row("server", format!("{cpu_s:.2} CPU s, {memory} private memory"));
        }
    }

    fn text(&self) -> String {
        let rows = self.0.iter().filter(|(_, value)| value.is_some());
        let width = rows.map(|(what, _)| what.chars().count()).max().unwrap_or(0);
        let mut text = String::new();
        for (what, value) in &self.0 {
            let _ = match value {
                Some(value) => writeln!(text, "{what:width$}  {value}"),
                None => writeln!(text, "{what}"),
            };
        }
        text
    }
}

impl Report {
    pub fn table(&self) -> String {
        let mut table = Table::default();
        let info = self.relay.clone().unwrap_or_default();
        let software = [info.software, info.version].into_iter().flatten().collect::<Vec<_>>();
        table.head(
            super::connection::shown(&[&*self.url, &software.join(" ")].join(" ")).trim_end(),
        );
        if let Some(verify) = &self.verify {
            table.head("verify");
            table.row("one core", format!("{} signatures/s", count(verify.per_second)));
            let all = count(verify.all_cores);
            table.row(&format!("{} cores", verify.cores), format!("{all} signatures/s"));
        }
        if let Some(publish) = &self.publish {
            publish_rows(&mut table, publish);
        }
        for (name, report) in
            [("query", &self.query), ("clients", &self.clients), ("search", &self.search)]
        {
            if let Some(report) = report {
                query_rows(&mut table, name, report);
            }
        }
        if let Some(fanout) = &self.fanout {
            fanout_rows(&mut table, fanout);
        }
        if let Some(idle) = &self.idle {
            idle_rows(&mut table, idle);
        }
        let mut text = table.text();
        for note in &self.notes {
            let _ = writeln!(text, "note: {note}");
        }
        text
    }
}

fn publish_rows(table: &mut Table, publish: &PublishReport) {
    let PublishReport { connections, in_flight, .. } = publish;
    table.head(&format!("publish, {connections} connections × {in_flight} in flight"));
    let sent = count(publish.sent as f64);
    table.row("events", format!("{sent} in {:.2} s", publish.seconds));
    let mut rate = format!("{} events/s", count(publish.per_second));
    if let Some(ratio) = publish.verify_ratio {
        let _ = write!(rate, ", {ratio:.2} of verify");
    }
    table.row("rate", rate);
    if let (Some(first), Some(last)) = (publish.first_per_second, publish.last_per_second) {
        let text = format!("{} and {} events/s", count(first), count(last));
        table.row("first and last 50,000", text);
    }
    table.latency("until OK", publish.ok);
    if publish.duplicates > 0 {
        table.row("duplicates", count(publish.duplicates as f64));
    }
    if publish.rejected > 0 {
        table.row("rejected", count(publish.rejected as f64));
        for (reason, times) in &publish.reasons {
            table.row("", format!("{} × {reason}", count(*times as f64)));
        }
    }
    table.used(publish.server);
    if let Some(seconds) = publish.server_cpu_s_per_50k {
        table.row("server per 50,000 events", format!("{seconds:.2} CPU s"));
    }
    if let Some(bytes) = publish.data_bytes {
        let before = publish.data_bytes_before.unwrap_or_default();
        let text = format!("{}, {} before", megabytes(bytes), megabytes(before));
        table.row("data directory", text);
    }
}

fn query_rows(table: &mut Table, name: &str, report: &QueryReport) {
    table.head(&format!("{name}, {} connections", report.connections));
    table.row("rate", format!("{} REQ/s", count(report.per_second)));
    table.latency("until EOSE", report.eose);
    for shape in &report.shapes {
        let mean = shape.events as f64 / shape.requests.max(1) as f64;
        let latency = shape.eose.map(milliseconds).unwrap_or_default();
        table.row(shape.name, format!("{latency}, {mean:.1} events each"));
    }
    table.used(report.server);
}

fn fanout_rows(table: &mut Table, fanout: &FanoutReport) {
    let paced = &fanout.paced;
    let rate = count(f64::from(paced.events_per_second));
    table.head(&format!("fanout, {} subscribers × {rate} events/s", fanout.subscribers));
    let text = format!("{} of {}", count(paced.delivered as f64), count(paced.expected as f64));
    table.row("delivered", text);
    table.latency("until delivered", paced.delivery);
    table.used(paced.server);
    let unpaced = &fanout.unpaced;
    table.head(&format!("fanout, {} subscribers, as fast as it goes", fanout.subscribers));
    let text = format!("{} of {}", count(unpaced.delivered as f64), count(unpaced.expected as f64));
    table.row("delivered", text);
    table.row("rate", format!("{} deliveries/s", count(unpaced.deliveries_per_second)));
    if unpaced.lost_subscribers > 0 {
        table.row("subscribers lost", count(unpaced.lost_subscribers as f64));
    }
    table.used(unpaced.server);
}

fn idle_rows(table: &mut Table, idle: &IdleReport) {
    table.head(&format!("idle, {} connections", count(f64::from(idle.wanted))));
    table.row("opened", format!("{} in {:.2} s", count(f64::from(idle.opened)), idle.seconds));
    table.latency("publish before", idle.publish_before);
    table.latency("publish with them", idle.publish_with);
    if let Some(bytes) = idle.bytes_per_connection {
        table.row("memory each", format!("{:.1} kB", bytes / 1_000.0));
    }
}

fn milliseconds(latency: Summary) -> String {
    format!("p50 {:.2} ms, p99 {:.2} ms", latency.p50_ms, latency.p99_ms)
}

fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}

/// A whole number with its thousands apart.
fn count(number: f64) -> String {
    let digits = format!("{number:.0}");
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_their_thousands_apart() {
        assert_eq!(count(0.0), "0");
        assert_eq!(count(999.4), "999");
        assert_eq!(count(1_234_567.0), "1,234,567");
        assert_eq!(megabytes(28_500_000), "28.5 MB");
    }

    #[test]
    fn the_table_shows_what_was_measured_and_nothing_else() {
        let report = Report {
            url: "ws://127.0.0.1:1".to_owned(),
            verify: Some(VerifyReport {
                per_second: 38_000.0,
                per_cpu_second: None,
                all_cores: 70_000.0,
                cores: 2,
            }),
            notes: vec!["no search".to_owned()],
            ..Report::default()
        };
        let expected = "ws://127.0.0.1:1\nverify\n  one core  38,000 signatures/s\n  2 cores   70,000 signatures/s\nnote: no search\n";
        assert_eq!(report.table(), expected);
    }
}
