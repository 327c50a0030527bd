//! `musectl worker list`.

use muse_proto::v1::ListWorkersRequest;

use crate::{
    arguments::{Output, WorkerCommand},
    client::{Gateways, call},
    failure::Failure,
    output,
    view::queue::{worker_table, workers_of},
};

pub(crate) async fn run(
    command: &WorkerCommand,
    mut gateways: Gateways,
    output: Output,
) -> Result<(), Failure> {
    let WorkerCommand::List = command;
    let response = gateways
        .admin()
        .await?
        .list_workers(call(ListWorkersRequest {}))
        .await?
        .into_inner();
    let workers = workers_of(&response);
    output::print(output, &workers, || worker_table(&workers))
}
