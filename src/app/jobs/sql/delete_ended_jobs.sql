-- The status is checked again: a failed job may have been put back into the queue since it was read.
WITH old AS (
    SELECT id FROM procrastinate_jobs WHERE id = ANY(:ids) AND status NOT IN ('todo', 'doing')
    FOR UPDATE SKIP LOCKED
), errors AS (
    DELETE FROM job_errors WHERE job_id = ANY(ARRAY(SELECT id FROM old))
)
DELETE FROM procrastinate_jobs WHERE id = ANY(ARRAY(SELECT id FROM old))
