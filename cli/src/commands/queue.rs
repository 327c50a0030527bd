//! `musectl queue …`.

use std::{
    io::{IsTerminal as _, stdout},
    time::Duration,
};

use muse_proto::v1::{GetQueueStatusRequest, ListWorkersRequest, PauseRequest, ResumeRequest};
use serde::Serialize;
use tokio::{signal::ctrl_c, time::sleep};

use crate::{
    arguments::{Output, QueueCommand},
    client::{Gateways, call},
    failure::Failure,
    output,
    view::{queue::QueueView, tenant::PausedView},
};

/// Clears a terminal and goes to its top.
const CLEAR: &str = "\u{1b}[2J\u{1b}[H";

#[derive(Serialize)]
struct PauseView {
    paused: Option<PausedView>,
    /// Somebody had paused it before; that pause stands.
    already: bool,
}

#[derive(Serialize)]
struct ResumeView {
    was_paused: bool,
}

pub(crate) async fn run(
    command: &QueueCommand,
    mut gateways: Gateways,
    output: Output,
) -> Result<(), Failure> {
    match command {
        QueueCommand::Status => {
            let view = look(&mut gateways).await?;
            output::print(output, &view, || view.table())
        }
        QueueCommand::Watch { interval, times } => tokio::select! {
            watched = watch(&mut gateways, *interval, *times, output) => watched,
            // The way in which a watch ends: no failure.
            _ = ctrl_c() => Ok(()),
        },
        QueueCommand::Pause { target, reason } => {
            let request = PauseRequest {
                target: target.to_pause(),
                reason: reason.clone(),
            };
            let response = gateways.admin().await?.pause(call(request)).await?.into_inner();
            let view = PauseView {
                paused: response.paused.as_ref().map(PausedView::from),
                already: response.already,
            };
            output::print(output, &view, || {
                let paused = PausedView::cell(view.paused.as_ref());
                let already = if view.already { " already" } else { "" };
                format!("{} is{already} paused: {paused}", target.name())
            })
        }
        QueueCommand::Resume { target } => {
            let request = ResumeRequest {
                target: target.to_resume(),
            };
            let response = gateways.admin().await?.resume(call(request)).await?.into_inner();
            let view = ResumeView {
                was_paused: response.was_paused,
            };
            output::print(output, &view, || match view.was_paused {
                true => format!("{} goes on", target.name()),
                false => format!("{} was not paused", target.name()),
            })
        }
    }
}

async fn look(gateways: &mut Gateways) -> Result<QueueView, Failure> {
    let mut admin = gateways.admin().await?;
    let status = admin
        .get_queue_status(call(GetQueueStatusRequest {}))
        .await?
        .into_inner();
    let workers = admin
        .list_workers(call(ListWorkersRequest {}))
        .await?
        .into_inner();
    Ok(QueueView::new(&status, &workers))
}

/// Looks again and again. Once a gateway has answered, one that does not is waited for: an operator watches most closely when
/// things break.
async fn watch(
    gateways: &mut Gateways,
    interval: Duration,
    times: Option<u64>,
    output: Output,
) -> Result<(), Failure> {
    let mut looks = 0;
    loop {
        match look(gateways).await {
            Ok(view) => {
                let text = match output {
                    Output::Json => output::json(&view, false)? + "\n",
                    Output::Table if stdout().is_terminal() => format!("{CLEAR}{}\n", view.table()),
                    Output::Table => format!("{}\n\n", view.table()),
                };
                if !output::write(text.as_bytes())? {
                    return Ok(());
                }
                looks += 1;
            }
            Err(failure) if looks == 0 => return Err(failure),
            Err(failure) => {
                eprintln!("{failure}");
                gateways.move_on();
            }
        }
        if times.is_some_and(|times| looks >= times) {
            return Ok(());
        }
        sleep(interval).await;
    }
}
