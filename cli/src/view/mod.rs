//! Answers of the cluster as tables for people and as JSON for machines. JSON keys are part of musectl's interface: units are
//! in their names, enums are words, times are RFC 3339.

pub(crate) mod dead;
pub(crate) mod job;
pub(crate) mod model;
pub(crate) mod queue;
pub(crate) mod tenant;
pub(crate) mod words;

use comfy_table::{ContentArrangement, Table, presets};

/// A table with a header; long cells wrap at a terminal's edge.
pub(crate) fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_header(header);
    table
}

/// A table of names and facts, without a header.
pub(crate) fn facts<'a>(facts: impl IntoIterator<Item = (&'a str, String)>) -> String {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Dynamic);
    for (name, fact) in facts {
        table.add_row([name.to_owned(), fact]);
    }
    render(&table)
}

/// Without the blanks at the ends of lines.
pub(crate) fn render(table: &Table) -> String {
    table.trim_fmt()
}

/// Seconds, if the duration is a possible one.
pub(crate) fn seconds(duration: Option<&prost_types::Duration>) -> Option<f64> {
    duration
        .and_then(muse_proto::std_duration)
        .map(|duration| duration.as_secs_f64())
}

/// RFC 3339, in UTC.
pub(crate) fn time(timestamp: Option<&prost_types::Timestamp>) -> Option<String> {
    timestamp.map(ToString::to_string)
}

/// A span of time that a person takes in at a glance.
pub(crate) fn span(seconds: f64) -> String {
    match seconds {
        seconds if seconds < 0.1 => format!("{:.1} ms", seconds * 1000.0),
        seconds if seconds < 120.0 => format!("{seconds:.2} s"),
        seconds if seconds < 7200.0 => format!("{:.0} min", seconds / 60.0),
        seconds => format!("{:.1} h", seconds / 3600.0),
    }
}

/// What is absent.
pub(crate) fn or_dash(text: Option<String>) -> String {
    text.filter(|text| !text.is_empty())
        .unwrap_or_else(|| "-".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_have_the_unit_that_fits() {
        let spans = [0.0042, 0.5, 61.0, 600.0, 9000.0].map(span);
        assert_eq!(spans, ["4.2 ms", "0.50 s", "61.00 s", "10 min", "2.5 h"]);
    }
}
