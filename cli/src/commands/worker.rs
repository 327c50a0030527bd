//! `musectl worker …`.

use std::{collections::BTreeMap, time::Duration};

use muse_proto::v1::{DrainWorkerRequest, ListWorkersRequest, ListWorkersResponse};
use serde::Serialize;
use tokio::{
    signal::ctrl_c,
    time::{Instant, sleep},
};
use tonic::{Code, Status};

use crate::{
    arguments::{Output, WorkerCommand},
    client::{Gateways, call},
    failure::Failure,
    output,
    progress::Display,
    view::queue::{worker_table, workers_of},
};

/// Between two looks at who is still there.
const LOOK: Duration = Duration::from_millis(500);

/// A worker that was told to drain.
#[derive(Debug, Serialize)]
struct Drained {
    worker: String,
    /// It has given its jobs back and left.
    gone: bool,
}

pub(crate) async fn run(
    command: &WorkerCommand,
    mut gateways: Gateways,
    output: Output,
) -> Result<(), Failure> {
    match command {
        WorkerCommand::List => {
            let workers = workers_of(&list(&mut gateways).await?);
            output::print(output, &workers, || worker_table(&workers))
        }
        WorkerCommand::Drain {
            ids,
            no_wait,
            timeout,
        } => {
            let (told, unknown) = tell(&mut gateways, ids).await?;
            if !no_wait {
                let waited = tokio::select! {
                    waited = wait(&mut gateways, &told, *timeout) => waited,
                    _ = ctrl_c() => Err(Failure::Interrupted("; the workers go on draining".to_owned())),
                };
                waited?;
            }
            report(told, &unknown, !no_wait, output)
        }
    }
}

async fn list(gateways: &mut Gateways) -> Result<ListWorkersResponse, Failure> {
    let mut admin = gateways.admin().await?;
    Ok(admin
        .list_workers(call(ListWorkersRequest {}))
        .await?
        .into_inner())
}

/// Gives those that were told, and those that are not there.
async fn tell(gateways: &mut Gateways, ids: &[String]) -> Result<(Vec<String>, Vec<String>), Failure> {
    let mut admin = gateways.admin().await?;
    let (mut told, mut unknown) = (Vec::new(), Vec::new());
    for id in ids {
        let worker_id = id.clone();
        match admin.drain_worker(call(DrainWorkerRequest { worker_id })).await {
            Ok(_) => told.push(id.clone()),
            Err(status) if status.code() == Code::NotFound => unknown.push(id.clone()),
            Err(status) => return Err(status.into()),
        }
    }
    Ok((told, unknown))
}

/// Until none of them is there any more. A gateway that does not answer is waited for: it may be the one that drains next.
async fn wait(gateways: &mut Gateways, ids: &[String], limit: Option<Duration>) -> Result<(), Failure> {
    let begun = Instant::now();
    let mut display = Display::new(false);
    let mut left = ids.join(", ");
    loop {
        match list(gateways).await {
            Ok(workers) => match still_there(ids, &workers) {
                None => break,
                Some(still) => left = still,
            },
            Err(failure) => {
                display.say(&failure.to_string());
                gateways.move_on();
            }
        }
        if limit.is_some_and(|limit| begun.elapsed() >= limit) {
            display.finish();
            return Err(Failure::Failed(format!(
                "still draining: {left}; they go on with it"
            )));
        }
        display.say(&format!("draining: {left}"));
        sleep(LOOK).await;
    }
    display.finish();
    Ok(())
}

/// Those that have not left yet, with the rows they compute, in words. `None`: nobody.
fn still_there(ids: &[String], workers: &ListWorkersResponse) -> Option<String> {
    let attached: BTreeMap<&str, u32> = workers
        .workers
        .iter()
        .map(|worker| (worker.id.as_str(), worker.rows))
        .collect();
    let left: Vec<String> = ids
        .iter()
        .filter_map(|id| Some(format!("{id} ({} rows)", attached.get(id.as_str())?)))
        .collect();
    (!left.is_empty()).then(|| left.join(", "))
}

/// A worker that was named and is not there is an error, once the others are told.
fn report(told: Vec<String>, unknown: &[String], gone: bool, output: Output) -> Result<(), Failure> {
    let drained: Vec<Drained> = told.into_iter().map(|worker| Drained { worker, gone }).collect();
    if !drained.is_empty() || unknown.is_empty() {
        output::print(output, &drained, || lines(&drained))?;
    }
    if unknown.is_empty() {
        return Ok(());
    }
    let unknown = unknown.join(", ");
    Err(Status::not_found(format!("not among the workers: {unknown}")).into())
}

fn lines(drained: &[Drained]) -> String {
    let line = |one: &Drained| format!("{} {}", one.worker, if one.gone { "is gone" } else { "drains" });
    drained.iter().map(line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use muse_proto::v1::Worker;

    use super::*;

    #[test]
    fn only_those_that_were_told_and_are_still_attached_are_waited_for() {
        let worker = |id: &str, rows| Worker {
            id: id.to_owned(),
            rows,
            ..Worker::default()
        };
        let workers = ListWorkersResponse {
            workers: vec![worker("w1", 3), worker("w2", 0), worker("w3", 1)],
        };
        let ids = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        assert_eq!(
            still_there(&ids(&["w0", "w1", "w2"]), &workers).as_deref(),
            Some("w1 (3 rows), w2 (0 rows)")
        );
        assert_eq!(still_there(&ids(&["w0"]), &workers), None);
        assert_eq!(still_there(&[], &workers), None);
    }

    #[test]
    fn what_was_named_and_is_not_there_fails_with_its_name() {
        let failure = report(vec![], &["w9".to_owned()], true, Output::Table).unwrap_err();
        assert_eq!(failure.code(), 5);
        assert!(failure.to_string().contains("w9"), "{failure}");
        let text = lines(&[
            Drained {
                worker: "w1".to_owned(),
                gone: true,
            },
            Drained {
                worker: "w2".to_owned(),
                gone: false,
            },
        ]);
        assert_eq!(text, "w1 is gone\nw2 drains");
    }
}
