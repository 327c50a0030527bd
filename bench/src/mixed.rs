//! Eight clients with different step counts: passes that jobs share, against one job at a time.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use anyhow::Context as _;
use futures::future::try_join_all;
use muse_engine::Stage;

use crate::{
    arguments::{Arguments, Settings},
    cluster::{self, Client},
    engine::StageCurve,
    measure::say,
    report::{Section, Table, Verdict, spread},
    stats::Series,
    workload::{MIX, Order},
};

/// Rows of one guided picture: with so small a budget a worker's passes are one job's.
const ROWS_ALONE: usize = 2;
/// Issue 5's bound, of the gain that the pass-time curve predicts.
const SHARE_OF_PREDICTED: f64 = 0.95;

pub(crate) async fn measure(
    arguments: &Arguments,
    settings: &Settings,
    curves: &[StageCurve],
) -> anyhow::Result<Section> {
    say("eight clients with mixed step counts");
    let clients = MIX.len();
    let shared = cluster::start(arguments, &[]).await?;
    let single = cluster::start(arguments, &["worker.batcher.row_budget=2"]).await?;
    let (with, without) = (Client::connect(&shared).await?, Client::connect(&single).await?);
    let (mut together, mut one_by_one) = (Vec::new(), Vec::new());
    for round in 0..=settings.rounds {
        let first = round * clients * settings.mixed_jobs;
        let orders = || {
            (first..first + clients * settings.mixed_jobs)
                .map(Order::mixed)
                .collect()
        };
        let rates = (all_of(&with, orders()).await?, all_of(&without, orders()).await?);
        // The first round fills caches.
        if round > 0 {
            together.push(rates.0);
            one_by_one.push(rates.1);
        }
    }
    let budgets = cluster::row_budgets(&shared).await?;
    shared.stop().await;
    single.stop().await;

    let measured = "nothing was measured";
    let (together, one_by_one) = (
        Series::new(together).context(measured)?,
        Series::new(one_by_one).context(measured)?,
    );
    let gain = together.over(&one_by_one);
    let predicted = predicted_gain(curves, &budgets, clients * ROWS_ALONE);
    let mut table = Table::new(&["", "pictures/s"]);
    table.row(["passes shared at every step".to_owned(), spread(&together, 2)]);
    table.row([
        "one job at a time in each stage".to_owned(),
        spread(&one_by_one, 2),
    ]);
    Ok(Section {
        name: "mixed".to_owned(),
        title: "Eight clients with mixed step counts".to_owned(),
        text: format!(
            "{} jobs, the same in both clusters, taken from one list by eight clients; their steps (base/super-resolution) are {}. \
             In the second cluster a pass has room for one guided picture alone (`batcher.row_budget = 2`), and its two stages \
             still work side by side. The engine's pass-time curve (`muse-bench engine`) predicts a gain of {predicted:.2}: the time that each picture's \
             steps take at two rows a pass, against its share of a pass of as many rows as the row budget and what eight clients have in that stage \
             allow.",
            clients * settings.mixed_jobs,
            MIX.map(|(base, superres)| format!("{base}/{superres}"))
                .join(", "),
        ),
        tables: vec![table],
        verdicts: vec![
            Verdict::reported("eight mixed clients: shared passes / one job at a time", &gain),
            Verdict::at_least(
                "that gain / the gain that the pass-time curve predicts",
                &gain.map(|gain| gain / predicted),
                SHARE_OF_PREDICTED,
            ),
        ],
    })
}

/// Pictures a second while eight clients work off `orders`.
async fn all_of(client: &Client, orders: VecDeque<Order>) -> anyhow::Result<f64> {
    let pictures = orders.len();
    let orders = Arc::new(Mutex::new(orders));
    let begun = Instant::now();
    let clients = (0..MIX.len()).map(|_| async {
        loop {
            let next = orders.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            let Some(order) = next else {
                return anyhow::Ok(());
            };
            client.make(&order).await?;
        }
    });
    try_join_all(clients).await?;
    Ok(pictures as f64 / begun.elapsed().as_secs_f64())
}

/// What sharing passes should bring where the passes are all that costs time: each stage's time of a guided picture alone,
/// against its share of a full pass; every job of the mix weighs alike. A pass has the rows that the budget allows, and no more
/// than the clients have in that stage: of `most_rows` in all as large a part as the stage has of a picture's time.
fn predicted_gain(curves: &[StageCurve], budgets: &BTreeMap<Stage, usize>, most_rows: usize) -> f64 {
    let steps = |stage: Stage| -> f64 {
        let each = MIX.iter().map(|(base, superres)| match stage {
            Stage::Base => *base,
            Stage::Superres => *superres,
        });
        f64::from(each.sum::<u32>())
    };
    let alone_in = |of: &StageCurve| steps(of.stage) * of.curve.time(ROWS_ALONE).as_secs_f64();
    let alone: f64 = curves.iter().map(alone_in).sum();
    let shared: f64 = curves
        .iter()
        .map(|of| {
            let present = (most_rows as f64 * alone_in(of) / alone.max(f64::MIN_POSITIVE)).round() as usize;
            let budget = budgets.get(&of.stage).copied().unwrap_or(ROWS_ALONE);
            let rows = budget.min(present).max(ROWS_ALONE);
            steps(of.stage) * of.curve.time(rows).as_secs_f64() * ROWS_ALONE as f64 / rows as f64
        })
        .sum();
    if shared > 0.0 { alone / shared } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use muse_worker::batcher::curve::{PassCurve, Point};

    use super::*;

    #[test]
    fn the_prediction_is_the_curves() {
        // 10 ms at 2 rows, 20 ms at 8: a picture's share of a pass falls from 10 to 5 ms.
        let point = |rows, millis| Point {
            rows,
            time: Duration::from_millis(millis),
        };
        let curves = [StageCurve {
            stage: Stage::Base,
            curve: PassCurve::new([point(2, 10), point(8, 20)]),
        }];
        let predict = |budget| predicted_gain(&curves, &BTreeMap::from([(Stage::Base, budget)]), 16);
        assert!((predict(8) - 2.0).abs() < 1e-9, "{}", predict(8));
        assert!(
            (predict(2) - 1.0).abs() < 1e-9,
            "no room, no gain: {}",
            predict(2)
        );
        assert!((predicted_gain(&[], &BTreeMap::new(), 16) - 1.0).abs() < 1e-9);
    }
}
