//! Tenants' settings, and pausing.

use muse_proto::v1::{
    self, ListTenantsRequest, ListTenantsResponse, PauseRequest, PauseResponse, Pool, ResumeRequest,
    ResumeResponse, SetTenantRequest, SetTenantResponse, TenantSettings, pause_request, resume_request,
};
use muse_service::Tenant;

use super::{AdminService, status::paused_message};
use crate::{
    Error, config,
    jobs::stage_name,
    queue::{Paused, SETTINGS, Settings, Target, TenantStatus},
    validate::Violations,
};

/// Above this, whole numbers are not exact in Redis' scripts.
const LARGEST: u64 = 1 << 53;

impl AdminService {
    pub(super) async fn tenants(&self, request: ListTenantsRequest) -> Result<ListTenantsResponse, Error> {
        let size = self.page_size(request.page_size);
        let after = request.page_token;
        if !after.is_empty() && Tenant::new(&after).is_err() {
            return Err(Error::field(
                "page_token",
                "must be the next_page_token of an earlier answer, or empty",
            ));
        }
        let tenants = self.queue.tenants(&after, size).await?;
        let next_page_token = match tenants.last() {
            Some(last) if tenants.len() == size as usize => last.name.clone(),
            _ => String::new(),
        };
        let defaults = &self.queue.config().tenant;
        Ok(ListTenantsResponse {
            tenants: tenants
                .into_iter()
                .map(|status| message(status, defaults))
                .collect(),
            next_page_token,
        })
    }

    pub(super) async fn change_tenant(
        &self,
        actor: &Tenant,
        request: SetTenantRequest,
    ) -> Result<SetTenantResponse, Error> {
        let mut found = Violations::default();
        let tenant = tenant(&request.name, "name", &mut found);
        let changes = changes(&request.settings.unwrap_or_default(), &request.reset, &mut found);
        let violations = found.into_vec();
        let (Some(tenant), true) = (tenant, violations.is_empty()) else {
            return Err(Error::Invalid(violations));
        };
        self.queue.set_tenant(&tenant, &changes).await?;
        tracing::info!(%actor, %tenant, ?changes, "a tenant's settings were changed");
        let status = self.queue.tenant(&tenant).await?;
        Ok(SetTenantResponse {
            tenant: Some(message(status, &self.queue.config().tenant)),
        })
    }

    pub(super) async fn stop(&self, actor: &Tenant, request: PauseRequest) -> Result<PauseResponse, Error> {
        let most = self.limits.reason_characters;
        let characters = request.reason.chars().count();
        if characters > most {
            let description = format!("must have at most {most} characters, not {characters}");
            return Err(Error::field("reason", description));
        }
        let target = match request.target {
            None => None,
            Some(pause_request::Target::Pool(pool)) => Some(Named::Pool(pool)),
            Some(pause_request::Target::Tenant(tenant)) => Some(Named::Tenant(tenant)),
        };
        let target = target_of(target)?;
        if let Target::Pool { model, .. } = &target {
            let models = self.models.all().await?;
            if !models.contains_key(model) {
                let known: Vec<&str> = models.keys().map(String::as_str).collect();
                let description = format!("{model:?} is not served; the models are: {}", known.join(", "));
                return Err(Error::field("pool.model", description));
            }
        }
        let before = self.queue.pause(&target, &request.reason).await?;
        let already = before.is_some();
        tracing::info!(%actor, ?target, reason = request.reason, already, "paused");
        let paused = match before {
            Some(paused) => Some(paused),
            None => self.paused_now(&target).await?,
        };
        Ok(PauseResponse {
            paused: paused.map(paused_message),
            already,
        })
    }

    async fn paused_now(&self, target: &Target) -> Result<Option<Paused>, Error> {
        let mut all = self.queue.paused().await?;
        Ok(match target {
            Target::Pool { model, stage } => all.pools.remove(&(model.clone(), stage.clone())),
            Target::Tenant(tenant) => all.tenants.remove(tenant.as_str()),
        })
    }

    pub(super) async fn let_go_on(
        &self,
        actor: &Tenant,
        request: ResumeRequest,
    ) -> Result<ResumeResponse, Error> {
        let target = match request.target {
            None => None,
            Some(resume_request::Target::Pool(pool)) => Some(Named::Pool(pool)),
            Some(resume_request::Target::Tenant(tenant)) => Some(Named::Tenant(tenant)),
        };
        let target = target_of(target)?;
        let was_paused = self.queue.resume(&target).await?.is_some();
        tracing::info!(%actor, ?target, was_paused, "resumed");
        Ok(ResumeResponse { was_paused })
    }
}

/// What a request names.
enum Named {
    Pool(Pool),
    Tenant(String),
}

fn target_of(named: Option<Named>) -> Result<Target, Error> {
    let mut found = Violations::default();
    let target = match named {
        None => {
            found.add("target", "is required: a pool or a tenant");
            None
        }
        Some(Named::Tenant(name)) => tenant(&name, "tenant", &mut found).map(Target::Tenant),
        Some(Named::Pool(pool)) => {
            let stage = stage_name(pool.stage());
            if stage.is_none() {
                found.add("pool.stage", "must be a stage");
            }
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
            if pool.model.is_empty() || !pool.model.bytes().all(plain) {
                found.add("pool.model", "must be a model's name");
            }
            stage.map(|stage| Target::Pool {
                model: pool.model,
                stage: stage.to_owned(),
            })
        }
    };
    let violations = found.into_vec();
    match target {
        Some(target) if violations.is_empty() => Ok(target),
        _ => Err(Error::Invalid(violations)),
    }
}

fn tenant(name: &str, field: &str, found: &mut Violations) -> Option<Tenant> {
    match Tenant::new(name) {
        Ok(tenant) => Some(tenant),
        Err(invalid) => {
            found.add(field, invalid.to_string());
            None
        }
    }
}

/// The fields to write, each with its value or none.
fn changes(
    given: &TenantSettings,
    reset: &[String],
    found: &mut Violations,
) -> Vec<(&'static str, Option<f64>)> {
    let whole = |value: Option<u64>| value.map(|value| value as f64);
    let values = [
        given.weight,
        whole(given.max_running),
        whole(given.max_queued),
        whole(given.max_bytes),
        given.rate,
        whole(given.burst),
    ];
    let mut changes = Vec::new();
    for (name, value) in SETTINGS.into_iter().zip(values) {
        let is_reset = reset.iter().any(|field| field == name);
        let Some(value) = value else {
            if is_reset {
                changes.push((name, None));
            }
            continue;
        };
        let field = format!("settings.{name}");
        if is_reset {
            found.add(field, "cannot be set and reset at once");
        } else if !value.is_finite() || value < 0.0 || value > LARGEST as f64 {
            found.add(field, format!("must be between 0 and 2^53, not {value}"));
        } else if name == "weight" && value == 0.0 {
            found.add(field, "must be above 0: pause the tenant to stop it");
        } else {
            changes.push((name, Some(value)));
        }
    }
    for (index, field) in reset.iter().enumerate() {
        if !SETTINGS.contains(&field.as_str()) {
            let description = format!("{field:?} is no setting; those are: {}", SETTINGS.join(", "));
            found.add(format!("reset[{index}]"), description);
        }
    }
    changes
}

fn message(status: TenantStatus, defaults: &config::Tenant) -> v1::Tenant {
    let Settings {
        weight,
        max_running,
        max_queued,
        max_bytes,
        rate,
        burst,
    } = status.settings;
    v1::Tenant {
        name: status.name,
        settings: Some(TenantSettings {
            weight,
            max_running,
            max_queued,
            max_bytes,
            rate,
            burst,
        }),
        in_force: Some(TenantSettings {
            weight: weight.or(Some(defaults.weight)),
            max_running: max_running.or(Some(defaults.max_running)),
            max_queued: max_queued.or(Some(defaults.max_queued)),
            max_bytes: max_bytes.or(Some(defaults.max_bytes)),
            rate: rate.or(Some(defaults.rate)),
            burst: burst.or(Some(defaults.burst)),
        }),
        queued: status.queued,
        running: status.running,
        delayed: status.delayed,
        bytes: status.bytes,
        paused: status.paused.map(paused_message),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn fields(given: &TenantSettings, reset: &[&str]) -> Vec<String> {
        let reset: Vec<String> = reset.iter().map(|field| (*field).to_owned()).collect();
        let mut found = Violations::default();
        let _ = changes(given, &reset, &mut found);
        found
            .into_vec()
            .into_iter()
            .map(|violation| violation.field)
            .collect()
    }

    #[test]
    fn settings_that_cannot_be_are_refused_by_name() {
        let given = TenantSettings {
            weight: Some(0.0),
            rate: Some(f64::NAN),
            max_bytes: Some(u64::MAX),
            burst: Some(1),
            ..TenantSettings::default()
        };
        assert_eq!(
            fields(&given, &["burst", "colour"]),
            [
                "settings.weight",
                "settings.max_bytes",
                "settings.rate",
                "settings.burst",
                "reset[1]"
            ]
        );
    }

    proptest! {
        #[test]
        fn what_is_set_is_written_and_what_is_reset_is_taken_away(max: Option<u32>, burst: Option<u32>) {
            let given = TenantSettings {
                max_running: max.map(u64::from),
                burst: burst.map(u64::from),
                ..TenantSettings::default()
            };
            let mut found = Violations::default();
            let changes = changes(&given, &["weight".to_owned()], &mut found);
            prop_assert!(found.into_vec().is_empty());
            let mut expected = vec![("weight", None)];
            expected.extend(max.map(|value| ("max_running", Some(f64::from(value)))));
            expected.extend(burst.map(|value| ("burst", Some(f64::from(value)))));
            prop_assert_eq!(changes, expected);
        }
    }
}
