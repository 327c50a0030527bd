//! Listeners of the gateway that changes something hear of it before Redis tells. Their bells are deaf to Redis here, so that
//! nothing else can ring.

use futures::FutureExt as _;
use muse_gateway::{
    connection::{Bells, PoolBell},
    jobs::Nonce,
    queue::{Grant, Queue, StageResult},
};
use muse_proto::v1::JobState;

use crate::{
    harness::{BASE, SUPERRES, claim, complete_base, hear, job, queue, state, submit},
    support::{redis_server::RedisServer, soon},
};

/// Often enough for those who ask to come too early once, if they could.
const ROUNDS: usize = 100;

/// The queue's bells hear another prefix, and only from when this returns: everything rings once when they have their
/// connection.
async fn deaf(server: &RedisServer, queue: Queue) -> (Queue, Bells) {
    let bells = Bells::listen(queue.redis(), vec!["other:".to_owned()]);
    hear(server, &bells, "other:").await;
    (queue.telling(&bells), bells)
}

/// The scripts are known to the server after that, as nearly always.
async fn one_job(queue: &Queue) {
    submit(queue, job()).await;
    let grant = claim(queue, BASE, 1).await.remove(0);
    complete_base(queue, &grant).await;
    let grant = claim(queue, SUPERRES, 1).await.remove(0);
    let pictures = StageResult::pictures(b"pictures".to_vec());
    queue
        .complete(grant.id, grant.nonce, SUPERRES, &pictures, 1, b"")
        .await
        .unwrap();
}

fn bell(bells: &Bells, pool: (&str, &str)) -> PoolBell {
    bells.pool(&format!("{}:{}", pool.0, pool.1))
}

/// What one look brings, made when the bell rings.
async fn look(queue: &Queue, bell: &PoolBell, pool: (&str, &str)) -> Vec<Grant> {
    soon("the bell", bell.rung()).await;
    queue
        .claim(0, pool, "worker", 1, &[Nonce::random()])
        .await
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn who_listens_for_work_looks_once_and_finds_what_is_on_its_way() {
    let server = RedisServer::start().await;
    let (queue, bells) = deaf(&server, queue(&server).await).await;
    one_job(&queue).await;
    let (base, superres) = (bell(&bells, BASE), bell(&bells, SUPERRES));
    for round in 0..ROUNDS {
        // Listening first, as a session does.
        let (grants, id) = tokio::join!(look(&queue, &base, BASE), submit(&queue, job()));
        assert_eq!(grants.len(), 1, "round {round}: the look came before the job");
        assert_eq!(grants[0].id, id);
        let (grants, _) = tokio::join!(
            look(&queue, &superres, SUPERRES),
            complete_base(&queue, &grants[0])
        );
        assert_eq!(grants.len(), 1, "round {round}: the look came before the tokens");
        assert_eq!(grants[0].low_tokens, b"tokens");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_watches_a_job_reads_its_end_behind_the_completion() {
    let server = RedisServer::start().await;
    let (queue, bells) = deaf(&server, queue(&server).await).await;
    one_job(&queue).await;
    for round in 0..ROUNDS {
        let id = submit(&queue, job()).await;
        let grant = claim(&queue, BASE, 1).await.remove(0);
        complete_base(&queue, &grant).await;
        let grant = claim(&queue, SUPERRES, 1).await.remove(0);
        let mut bell = bells.job(&id.to_string());
        let pictures = StageResult::pictures(b"pictures".to_vec());
        let completed = queue.complete(grant.id, grant.nonce, SUPERRES, &pictures, 1, b"");
        let (_, read) = tokio::join!(completed, async {
            soon("the bell", bell.rung()).await;
            state(&queue, id).await
        });
        assert_eq!(read, JobState::Succeeded, "round {round}");
    }
}

#[tokio::test]
async fn nothing_is_kept_for_those_who_do_not_listen() {
    let server = RedisServer::start().await;
    let (queue, bells) = deaf(&server, queue(&server).await).await;
    let base = bell(&bells, BASE);
    submit(&queue, job()).await;
    assert!(
        base.rung().now_or_never().is_none(),
        "the bell that Redis rings is still to come"
    );
    assert_eq!(claim(&queue, BASE, 1).await.len(), 1);
}
