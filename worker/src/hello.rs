//! Who this shard is, for the hub: its bundle as `muse.v1.Model`.

use muse_engine::{Bundle, StageSpec};
use muse_proto::v1::{Model, ModelStage};

use crate::settings;

/// The bundle, all of its stages included, so that a gateway can fill in a request's defaults from any one shard.
pub fn model(bundle: &Bundle) -> Model {
    let size = bundle.image_size();
    Model {
        name: bundle.model().name.clone(),
        version: bundle.model().version.clone(),
        license: bundle.model().license.clone(),
        description: bundle.model().description.clone(),
        bundle_digest: bundle.digest().to_owned(),
        stages: bundle.stages().map(stage).collect(),
        width: size.width,
        height: size.height,
        max_text_tokens: bundle.text().max_length as u32,
    }
}

fn stage(spec: &StageSpec) -> ModelStage {
    ModelStage {
        stage: settings::stage_to_wire(spec.stage) as i32,
        grid_rows: spec.rows,
        grid_columns: spec.columns,
        codebook_size: spec.codebook_size,
        defaults: Some(settings::to_wire(&spec.defaults)),
        workers: 0,
    }
}
