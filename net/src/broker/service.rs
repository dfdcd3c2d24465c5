//! The broker as the service behind the wire: where a session's connection is served best, what begins and ends with it.

use std::{net::IpAddr, rc::Rc};

use millrace_engine::engine::Engine;

use crate::{
    broker::{
        affinity::Affinity,
        config::Advertise,
        context::Authorization,
        handlers::{cluster::api_versions, share::end_sessions},
        served::TABLE,
        session::Session,
        settings::broker,
        shard::BrokerShard,
        table::{Api, is_served},
        telemetry,
    },
    wire::{
        api::Reply,
        frame::Malformed,
        limits::Refusal,
        peer::{Moving, Origin},
        serve::{self, Serving},
        service::Service,
        shared::Wire,
    },
};

impl Service for BrokerShard {
    type Session = Session;
    type Authorization = Authorization;

    fn table() -> &'static [&'static Api] {
        TABLE
    }

    fn wire(&self) -> &Wire {
        &self.wire
    }

    fn shard(&self) -> usize {
        self.engine.shard()
    }

    fn gate(&self, _session: &Session, api: &Api) -> Result<(), Malformed> {
        match is_served(api, self) {
            true => Ok(()),
            false => Err(Malformed::UnknownApi(api.key as i16)),
        }
    }

    fn on_request(&self) {
        self.engine.note_activity();
    }

    fn unsupported_api_versions(correlation_id: i32) -> Reply {
        api_versions::unsupported(correlation_id)
    }

    fn is_answer_memory_contended(&self) -> bool {
        self.engine.is_fetch_memory_contended()
    }

    fn elsewhere(&self, session: &Session) -> Option<usize> {
        match self.config.advertise {
            Advertise::Node => session.affinity.elsewhere(self.engine.shard()),
            // clients choose the shard by themselves
            Advertise::Shard => None,
        }
    }

    fn on_stays(&self, session: &mut Session) {
        session.affinity = Affinity::default();
    }

    fn pack(&self, session: &mut Session) {
        session.carried = self.fetch_sessions.borrow_mut().take(session.fetch_session);
    }

    fn unpack(&self, session: &mut Session) {
        if let Some(carried) = session.carried.take() {
            self.fetch_sessions.borrow_mut().adopt(session.fetch_session, carried);
        }
        // which shard it is for begins anew here
        session.affinity = Affinity::default();
    }

    async fn send(&self, shard: usize, moving: Moving<Session>) {
        let take_over = move |engine: Engine| async move {
            serve::take_over(part_of::<Serving<BrokerShard>>(&engine).await, moving);
        };
        self.engine.on_shard(shard, take_over).await;
    }

    /// Shard 0 counts the connections of the whole node.
    async fn admit(&self, ip: IpAddr) -> Result<(), Refusal> {
        let admit = move |engine: Engine| async move {
            let shard = part_of::<BrokerShard>(&engine).await;
            let (connections_max, per_ip_max) = broker::connection_limits(&shard.config, &engine.broker_settings());
            shard.wire.limits.borrow_mut().admit(ip, connections_max, per_ip_max)
        };
        self.engine.on_shard(0, admit).await
    }

    async fn on_uncounted(&self, ip: IpAddr) {
        let count_out = move |engine: Engine| async move {
            part_of::<BrokerShard>(&engine).await.wire.limits.borrow_mut().on_closed(ip);
        };
        self.engine.on_shard(0, count_out).await;
    }

    async fn on_closed(&self, origin: Origin, session: Session) {
        if session.pushes_telemetry {
            telemetry::on_closed(&self.engine, origin.connection).await;
        }
        end_sessions(&self.engine, origin.connection, session.share_sessions).await;
    }
}

/// A part of another shard, which may still be starting.
async fn part_of<T: 'static>(engine: &Engine) -> Rc<T> {
    engine.attachment().await
}
