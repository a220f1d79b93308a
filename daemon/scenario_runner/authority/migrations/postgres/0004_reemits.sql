CREATE TABLE operator_actions (
    action_id  bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    action_key text COLLATE "C" NOT NULL UNIQUE,
    at         bigint NOT NULL,
    actor      text NOT NULL,
    via        text NOT NULL,
    action     text NOT NULL,
    subject    text COLLATE "C" NOT NULL,
    reason     text NOT NULL,
    outcome    text NOT NULL,
    detail     text NOT NULL
);
CREATE INDEX operator_actions_subject ON operator_actions (subject, at);
ALTER TABLE outbox ADD COLUMN emission integer NOT NULL DEFAULT 0;
ALTER TABLE outbox ADD COLUMN receipt text NOT NULL DEFAULT '';
ALTER TABLE outbox ADD COLUMN action_key text NOT NULL DEFAULT '';
ALTER TABLE outbox DROP CONSTRAINT outbox_message_id_key;
ALTER TABLE outbox ADD CONSTRAINT outbox_message_id_emission_key UNIQUE (message_id, emission);
CREATE INDEX outbox_published ON outbox (sent_us, outbox_id) WHERE emission = 0 AND sent_us IS NOT NULL;
