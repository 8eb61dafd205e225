-- Jobs that ended before a trigger cleared their worker. With these references, deleting a worker would update all of its
-- jobs in one statement.
UPDATE procrastinate_jobs SET worker_id = NULL WHERE id = ANY(ARRAY(
    SELECT id FROM procrastinate_jobs WHERE worker_id = ANY(:workers) AND status <> 'doing'
    LIMIT :batch FOR UPDATE SKIP LOCKED
))
