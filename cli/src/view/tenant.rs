//! Tenants.

use muse_proto::v1::{Paused, Tenant, TenantSettings};
use serde::Serialize;

use super::{or_dash, render, table, time};

#[derive(Debug, Serialize)]
pub(crate) struct TenantView {
    name: String,
    /// What was set; what is null comes from the gateway's configuration.
    settings: SettingsView,
    in_force: SettingsView,
    queued: u64,
    running: u64,
    delayed: u64,
    bytes: u64,
    pub(crate) paused: Option<PausedView>,
}

#[derive(Debug, Default, Serialize)]
struct SettingsView {
    weight: Option<f64>,
    max_running: Option<u64>,
    max_queued: Option<u64>,
    max_bytes: Option<u64>,
    rate: Option<f64>,
    burst: Option<u64>,
}

/// Since when, and why.
#[derive(Debug, Serialize)]
pub(crate) struct PausedView {
    since: Option<String>,
    reason: String,
}

impl From<&Paused> for PausedView {
    fn from(paused: &Paused) -> Self {
        Self {
            since: time(paused.since.as_ref()),
            reason: paused.reason.clone(),
        }
    }
}

impl PausedView {
    /// In a cell of a table.
    pub(crate) fn cell(paused: Option<&Self>) -> String {
        or_dash(paused.map(|paused| match paused.reason.as_str() {
            "" => format!("since {}", or_dash(paused.since.clone())),
            reason => format!("{reason} (since {})", or_dash(paused.since.clone())),
        }))
    }
}

impl From<&TenantSettings> for SettingsView {
    fn from(settings: &TenantSettings) -> Self {
        Self {
            weight: settings.weight,
            max_running: settings.max_running,
            max_queued: settings.max_queued,
            max_bytes: settings.max_bytes,
            rate: settings.rate,
            burst: settings.burst,
        }
    }
}

impl From<&Tenant> for TenantView {
    fn from(tenant: &Tenant) -> Self {
        let settings =
            |settings: Option<&TenantSettings>| settings.map(SettingsView::from).unwrap_or_default();
        Self {
            name: tenant.name.clone(),
            settings: settings(tenant.settings.as_ref()),
            in_force: settings(tenant.in_force.as_ref()),
            queued: tenant.queued,
            running: tenant.running,
            delayed: tenant.delayed,
            bytes: tenant.bytes,
            paused: tenant.paused.as_ref().map(PausedView::from),
        }
    }
}

/// One a row: what it has, of what it may have.
pub(crate) fn list(tenants: &[TenantView]) -> String {
    let mut rows = table(&[
        "TENANT",
        "WEIGHT",
        "RUNNING",
        "QUEUED",
        "DELAYED",
        "BYTES",
        "PER SECOND",
        "BURST",
        "PAUSED",
    ]);
    for tenant in tenants {
        let limits = &tenant.in_force;
        rows.add_row([
            tenant.name.clone(),
            or_dash(limits.weight.map(|weight| weight.to_string())),
            of(tenant.running, limits.max_running),
            of(tenant.queued, limits.max_queued),
            tenant.delayed.to_string(),
            of(tenant.bytes, limits.max_bytes),
            or_dash(
                limits
                    .rate
                    .filter(|rate| *rate > 0.0)
                    .map(|rate| rate.to_string()),
            ),
            or_dash(
                limits
                    .burst
                    .filter(|burst| *burst > 0)
                    .map(|burst| burst.to_string()),
            ),
            PausedView::cell(tenant.paused.as_ref()),
        ]);
    }
    render(&rows)
}

/// `3/10`, or `3` where there is no limit.
fn of(value: u64, limit: Option<u64>) -> String {
    match limit {
        None | Some(0) => value.to_string(),
        Some(limit) => format!("{value}/{limit}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_of_none_is_not_shown_as_one() {
        let tenant = Tenant {
            name: "lab".to_owned(),
            in_force: Some(TenantSettings {
                weight: Some(2.0),
                max_running: Some(4),
                max_queued: Some(0),
                ..TenantSettings::default()
            }),
            running: 3,
            queued: 9,
            paused: Some(Paused {
                since: None,
                reason: "over budget".to_owned(),
            }),
            ..Tenant::default()
        };
        let views = [TenantView::from(&tenant)];
        let text = list(&views);
        let row = text.lines().nth(1).unwrap();
        for part in ["lab", "2", "3/4", " 9 ", "over budget"] {
            assert!(row.contains(part), "{part} is missing in {text}");
        }
        assert_eq!(
            serde_json::to_value(&views[0]).unwrap()["settings"]["weight"],
            serde_json::Value::Null
        );
    }
}
