//! `musectl model list`.

use muse_proto::v1::ListModelsRequest;

use crate::{
    arguments::{ModelCommand, Output},
    client::{Gateways, call},
    failure::Failure,
    output,
    view::model::ModelsView,
};

pub(crate) async fn run(
    command: &ModelCommand,
    mut gateways: Gateways,
    output: Output,
) -> Result<(), Failure> {
    let ModelCommand::List = command;
    let response = gateways
        .models()
        .await?
        .list_models(call(ListModelsRequest {}))
        .await?
        .into_inner();
    let view = ModelsView::from(&response);
    output::print(output, &view, || view.table())
}
